"""Text-to-SQL: databases as prompts, and queries that are executed and compared.

    statements   the query in a model's response, and its parts (sqlglot)
    execution    one query on one SQLite file, read-only and within limits
    results      whether two results are the same
    schema       tables, columns, keys and sample values of a database
    prompts      the schema and a question as the prompt of a pair, within a number of tokens
    questions    folders of Spider and BIRD as files of pairs
    synthesis    pairs from queries that the model writes itself

Import the modules: nothing is re-exported here. Only `statements` needs sqlglot.
"""
