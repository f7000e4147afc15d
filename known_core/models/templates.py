"""Chat templates of a checkpoint: Jinja from a stranger, parsed, never rendered here, and carried over to the result.

transformers renders them in a sandbox. What the sandbox would refuse, or what reads other files, has no place in one:
whoever loads the result in something laxer is not to run it.
"""

import re
from collections.abc import Iterator
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from known_core.checkpoint.source import Source
from known_core.errors import KnownError
from known_core.models.config import read_fields

_MAX_TEMPLATE_BYTES = 1 << 20
_MAX_TOKENIZER_CONFIG_BYTES = 16 << 20  # with thousands of added tokens
_DUNDER = re.compile(r"__\w+__")
_OTHER_FILES = (nodes.Extends, nodes.Import, nodes.FromImport, nodes.Include)


class _Generation(Extension):
    """The block that marks what the assistant says, as transformers knows it."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


_JINJA = jinja2.Environment(extensions=[loopcontrols, _Generation])  # noqa: S701 (nothing is rendered)


def check_templates(source: Source) -> None:
    """Refuse a checkpoint with a hostile chat template.

    Raises:
        KnownError: ``template_refused``; ``processor_invalid`` where the file that should hold it is not JSON.
    """
    for label, template in _templates(source):
        if len(template) > _MAX_TEMPLATE_BYTES:
            raise _refused(label, f"has {len(template)} characters")
        try:
            tree = _JINJA.parse(template)
            reason = next(filter(None, map(_reason, _nodes(tree))), None)
        except (jinja2.TemplateError, RecursionError, ValueError, OverflowError) as error:
            raise _refused(label, f"is not Jinja: {type(error).__name__}: {str(error)[:120]}") from error
        if reason:
            raise _refused(label, reason)


def _refused(label: str, reason: str) -> KnownError:
    return KnownError(
        "template_refused", f"the chat template in {label} {reason}", "Take the template of the model's own publisher."
    )


def _templates(source: Source) -> Iterator[tuple[str, str]]:
    for name in source.names():
        if name.endswith(".jinja"):
            with source.open(name) as stream:
                yield name, stream.read(_MAX_TEMPLATE_BYTES + 1).decode("utf-8", "replace")
        elif name in ("tokenizer_config.json", "chat_template.json", "processor_config.json"):
            found = read_fields(source, name, "processor_invalid", _MAX_TOKENIZER_CONFIG_BYTES).get("chat_template")
            for template in _texts(found):
                yield name, template


def _texts(found: Any) -> Iterator[str]:
    """Of one template, of a list of {name, template}, or of a mapping by name."""
    if isinstance(found, str):
        yield found
    elif isinstance(found, list | dict):
        for item in found.values() if isinstance(found, dict) else found:
            yield from _texts(item)


def _nodes(tree: nodes.Template) -> Iterator[nodes.Node]:
    pending: list[nodes.Node] = [tree]
    while pending:
        node = pending.pop()
        yield node
        pending += node.iter_child_nodes()


def _reason(node: nodes.Node) -> str | None:
    """What of a template the sandbox would not do."""
    if isinstance(node, _OTHER_FILES):
        return "reads other files"
    if isinstance(node, nodes.Getattr) and node.attr.startswith("_"):
        return f"reaches for {node.attr[:40]!r}"
    if isinstance(node, nodes.Filter) and node.name == "attr":
        return "reaches for attributes by name"
    if isinstance(node, nodes.Const) and isinstance(node.value, str) and _DUNDER.search(node.value):
        return f"reaches for {node.value[:40]!r}"
    return None
