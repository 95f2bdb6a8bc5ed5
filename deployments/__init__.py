"""How the loop is run: the command line `iris`, the services behind `iris up`, deployments and recipes."""
