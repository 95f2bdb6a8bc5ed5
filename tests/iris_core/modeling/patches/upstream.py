"""Third-party code that a patch replaces, as text: where it changes, the patch must be looked at."""

import ast
import inspect


def code_of(module, name):
    """The body of the function `name`, as in "Class.method", in `module`, without its docstring."""
    body = ast.parse(inspect.getsource(module)).body
    for part in name.split("."):
        (found,) = [node for node in body if getattr(node, "name", None) == part]
        body = found.body
    return _text(body[ast.get_docstring(found) is not None :])


def formatted(code):
    """`code` as `code_of` writes it."""
    return _text(ast.parse(inspect.cleandoc(code)).body)


def _text(body):
    return "\n".join(map(ast.unparse, body))
