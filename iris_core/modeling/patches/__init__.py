"""Every change to other people's code at run time, one module each.

A module says why the change is needed, in which versions of the package that was seen, and how to know when it can go.
Its test fails when the package changes under it. A change is a context manager that restores what was there, unless it
must hold for the whole process. Settings that a package offers do not belong here: they are set where they are used.
"""
