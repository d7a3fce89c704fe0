"""The demo's data, `builtin:stdlib`: questions about Python's standard library, answered by its own documentation.

The sources are parsed with `ast` and never imported, so the data needs no network, no torch, and runs nobody's code.
The library differs between Python versions: a module that an interpreter lacks is skipped, and the content hashes of
the examples record which library was read.
"""

import ast
import gc
import hashlib
import sysconfig
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Literal

from orchestrator.data.examples import Example, Turn
from orchestrator.errors import InputError

Function = ast.FunctionDef | ast.AsyncFunctionDef

# Chosen for much documentation per millisecond of parsing, because `backbone plan` reads them too.
MODULES = """
abc asyncio.locks asyncio.protocols asyncio.queues asyncio.tasks base64 bdb bisect bz2 calendar cmd code codecs
collections configparser contextlib csv difflib email.charset email.message email.parser email.policy email.utils
filecmp fileinput fnmatch fractions ftplib functools getopt getpass glob graphlib heapq hmac html http.server imaplib
importlib.abc importlib.metadata importlib.util ipaddress json json.decoder json.encoder linecache logging
logging.handlers mimetypes numbers operator os pathlib pkgutil platform poplib posixpath pprint queue random re sched
secrets selectors shelve shlex shutil smtplib socket socketserver statistics string symtable tempfile textwrap threading
timeit traceback tracemalloc unittest.case urllib.parse urllib.robotparser weakref wsgiref.handlers wsgiref.headers
xml.etree.ElementTree xml.sax.handler
"""

HELD_OUT_PERCENT = 12
ANSWER_CHARACTERS = 600  # an answer ends with the last paragraph that fits
SHORTEST_ANSWER = 20  # characters; shorter paragraphs, like "Example:", may recur, longer ones may not
LONGEST_SIGNATURE = 160


def stdlib_examples(split: Literal["train", "validation"]) -> list[Example]:
    """The question and answer pairs of one split, in a fixed order.

    Pairs are held out by what stands before the first dot of their group, so that a package, which repeats itself,
    never straddles the splits; and no paragraph of an answer recurs. Raises InputError when this Python comes without
    the sources of its library.
    """
    return [example for example in _all_examples() if is_held_out(example.group) == (split == "validation")]


def is_held_out(group: str) -> bool:
    """Whether a group belongs to the validation split: a hash of its package's name decides."""
    package = group.partition(".")[0]
    return int.from_bytes(hashlib.sha256(package.encode()).digest()[:8]) % 100 < HELD_OUT_PERCENT


@cache
def _all_examples() -> tuple[Example, ...]:
    library = Path(sysconfig.get_path("stdlib"))
    with _without_garbage_collection():
        documented = [example for module in MODULES.split() for example in _module_examples(library, module)]
    if not documented:
        raise InputError(
            f"builtin:stdlib reads the sources of Python's standard library, and {library} has none. "
            "Use a Python that ships its .py files, or name your own data in recipe.data."
        )
    return tuple(_worth_learning([*documented, *_topic_examples()]))


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Syntax trees hold no cycles, and walking millions of fresh nodes for some takes a quarter of the parsing time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _worth_learning(examples: Iterable[Example]) -> Iterator[Example]:
    """Drops answers that say too little or repeat: copied docstrings share paragraphs, and the first one stays."""
    seen: set[str] = set()
    for example in examples:
        answer = example.turns[-1].content
        paragraphs = {" ".join(paragraph.split()) for paragraph in answer.split("\n\n")}
        passages = {answer, *(paragraph for paragraph in paragraphs if len(paragraph) >= SHORTEST_ANSWER)}
        if len(answer) >= SHORTEST_ANSWER and not passages & seen:
            yield example
        seen |= passages


def _module_examples(library: Path, module: str) -> Iterator[Example]:
    source = library.joinpath(*module.split("."))
    for path in (source.with_suffix(".py"), source / "__init__.py"):
        if path.is_file():
            for question, docstring in _documented(ast.parse(path.read_bytes()), module):
                answer = next(iter(chunks(docstring.split("\n\n"))), "")
                yield _example(module, question, answer)


def _example(group: str, question: str, answer: str) -> Example:
    return Example(group, (Turn("user", question), Turn("assistant", textwrap.dedent(answer).strip())))


def _documented(parent: ast.Module | ast.ClassDef, name: str) -> Iterator[tuple[str, str]]:
    """(question, docstring) of the public classes, functions and methods below `parent`, in source order."""
    for node in parent.body:
        if not isinstance(node, ast.ClassDef | Function) or node.name.startswith("_"):
            continue
        qualified = f"{name}.{node.name}"
        if docstring := ast.get_docstring(node):
            yield _question(node, qualified, is_method=isinstance(parent, ast.ClassDef)), docstring
        if isinstance(node, ast.ClassDef):
            yield from _documented(node, qualified)


def _question(node: ast.ClassDef | Function, name: str, *, is_method: bool) -> str:
    if isinstance(node, ast.ClassDef):
        return f"What is the class `{name}` for?"
    decorators = {decorator.id for decorator in node.decorator_list if isinstance(decorator, ast.Name)}
    if "property" in decorators:
        return f"What is the property `{name}`?"
    if is_method and "staticmethod" not in decorators:
        del (node.args.posonlyargs or node.args.args)[:1]  # self or cls
    arguments = ast.unparse(node.args)
    if len(arguments) > LONGEST_SIGNATURE:
        arguments = "..."
    keyword = "await " if isinstance(node, ast.AsyncFunctionDef) else ""
    return f"What does `{keyword}{name}({arguments})` do?"


def _topic_examples() -> Iterator[Example]:
    """The language reference as `help()` has it. Long topics contain short ones: a paragraph is used only once."""
    from pydoc_data.topics import topics  # half a megabyte of text, and nothing but text

    seen: set[str] = set()
    for topic, text in sorted(topics.items(), key=lambda item: (len(item[1]), item[0])):
        paragraphs = dict.fromkeys(paragraph for paragraph in text.strip().split("\n\n") if _is_prose(paragraph))
        fresh = [paragraph for paragraph in paragraphs if paragraph not in seen]
        seen.update(fresh)
        for part, answer in enumerate(chunks(fresh), start=1):
            yield _example(f"help:{topic}", f"Explain the Python help topic `{topic}` (part {part}).", answer)


def _is_prose(paragraph: str) -> bool:
    """False for drawn tables and underlined headings, whose rules are long runs of one character."""
    return not any(rule in paragraph for rule in ("----", "====", "****", "~~~~"))


def chunks(paragraphs: Iterable[str]) -> Iterator[str]:
    """Joins consecutive paragraphs up to `ANSWER_CHARACTERS`; a longer paragraph is cut between its lines."""
    chunk = ""
    for paragraph in paragraphs:
        separator = "\n\n"
        for piece in [paragraph] if len(paragraph) <= ANSWER_CHARACTERS else paragraph.split("\n"):
            if chunk and len(chunk) + len(separator) + len(piece) > ANSWER_CHARACTERS:
                yield chunk
                chunk = ""
            chunk = f"{chunk}{separator}{piece}" if chunk else piece
            separator = "\n"
    if chunk:
        yield chunk
