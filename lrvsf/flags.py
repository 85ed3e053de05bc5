"""A script's flags, read from the source of its dataclasses: --help and mistakes are told before torch is imported.

TrainingArguments cannot be imported without torch, which takes seconds. Its fields, their types, choices and help are
literals in its source, so the syntax tree of the installed file says all that `HfArgumentParser` would make of it; a
test compares the two. The values themselves are still parsed by HfArgumentParser, from the class.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import re
import textwrap
from collections.abc import Collection
from dataclasses import MISSING, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from lrvsf.command import WIDTH, OneLineParser
from lrvsf.data.names import did_you_mean

TRUE, FALSE = ("yes", "true", "t", "y", "1"), ("no", "false", "f", "n", "0")  # as HfArgumentParser reads them


@dataclass(frozen=True)
class Flag:
    """A field of a dataclass as a flag.

    Attributes:
        kind: int, float, bool or str, of one value; `nargs` says whether there may be several.
        default: None also where the source computes it.
        choices: the values that are taken; () for any, or where the source computes them.
        nargs, const: argparse's, of a flag that may stand without a value.
    """

    name: str
    kind: str
    required: bool
    default: Any
    choices: tuple[str, ...]
    help: str
    nargs: str | None
    const: Any


def flag(default: Any = MISSING, help: str = "", choices: Collection[str] = ()) -> Any:
    """A dataclass's field that is a flag, as `HfArgumentParser` and `dataclass_flags` read it. Without a default it is
    required."""
    metadata = {"help": help} | ({"choices": choices} if choices else {})
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


class FlagParser(OneLineParser):
    """Parses what HfArgumentParser would take of these flags, and refuses the rest in one line (ValueError)."""

    def __init__(self, usage: str, description: str, *classes: tuple[str, str]):
        """`classes`: (module, name) of the dataclasses, whose modules are not imported."""
        super().__init__(
            description,
            usage=usage,
            epilog="A bare --debug shows where in the program a refusal comes from.",
            allow_abbrev=False,  # else a misspelt `learning_rat` is silently taken for another flag
        )
        self.flags: dict[str, Flag] = {}
        for module, name in classes:
            group = self.add_argument_group(textwrap.fill(_docstring(module, name), WIDTH - 1))
            for flag in dataclass_flags(module, name).values():
                self.flags[flag.name] = flag
                self._add(group, flag)

    def _add(self, group: argparse._ArgumentGroup, flag: Flag) -> None:
        notes = [f"one of {', '.join(flag.choices)}"] if flag.choices else []  # argparse's {a,b,...} is never wrapped
        silent = flag.required or flag.default in (None, []) or "; by default" in flag.help  # which says it better
        notes += [] if silent else [f"default: {flag.default}"]
        note = f" ({'; '.join(notes)})" if notes else ""
        said = {"help": flag.help + note.replace("%", "%%"), "default": flag.default}
        said |= {"nargs": flag.nargs, "const": flag.const, "metavar": flag.kind.upper()}
        said |= {"choices": flag.choices} if flag.choices else {}
        said["type"] = {"int": int, "float": float, "bool": boolean}.get(flag.kind, str)
        group.add_argument(f"--{flag.name}", required=flag.required, **said)
        if flag.kind == "bool" and flag.default is True:
            # HfArgumentParser's own: --no_x beside each --x that is True by default.
            group.add_argument(f"--no_{flag.name}", dest=flag.name, action="store_false", help=argparse.SUPPRESS)

    def parse_args(self, args: list[str], namespace: None = None) -> argparse.Namespace:
        # The name alone: a value, after "=" or as a word of its own, keeps its hyphens.
        words = [re.sub("^--[^=]*", lambda name: "--" + name[0][2:].replace("-", "_"), word) for word in args]
        parsed, unknown = self.parse_known_args(words, namespace)
        if unknown:
            self.error(self.unknown(unknown[0]))
        return parsed

    def unknown(self, word: str) -> str:
        """What to say of a word that is no flag."""
        name = word.partition("=")[0].lstrip("-").replace("-", "_")
        if not word.startswith("-"):
            recipe = " A recipe comes first, before all flags." if word.endswith((".yaml", ".yml")) else ""
            return f"{word!r} belongs to no flag.{recipe} Names begin with two dashes, and --help lists them."
        close = did_you_mean(f"--{name}", [f"--{flag}" for flag in self.flags])
        return f"there is no flag --{name}.{close or ' --help lists them.'}"

    def error(self, message: str) -> NoReturn:
        """A ValueError that names the flag, and the choice that was meant."""
        if found := re.match(r"argument --(\w+)[^:]*: (.*)", message, re.DOTALL):
            flag = self.flags[found[1]]
            message = f"--{found[1]}: {found[2]}"
            if flag.choices and (given := re.search(r"invalid choice: '(.*?)'", message)):
                # "fp" is too short to be near "fp16", but begins it.
                begun = [f" Did you mean '{one}'?" for one in flag.choices if given[1] and one.startswith(given[1])]
                nearest = did_you_mean(given[1], flag.choices) or "".join(begun[:1])
                message += nearest and f".{nearest}"
        raise ValueError(message)


def boolean(text: str) -> bool:
    if text.lower() not in (*TRUE, *FALSE):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() in TRUE


def dataclass_flags(module: str, name: str) -> dict[str, Flag]:
    """The fields of a dataclass and of those that it inherits from, by name; its own come first."""
    body = _class(module, name)
    own = [_flag(node, module) for node in body.body if isinstance(node, ast.AnnAssign)]
    flags = {flag.name: flag for flag in own if flag is not None}
    for base in body.bases:
        if isinstance(base, ast.Name):
            inherited = dataclass_flags(_home(base.id, module), base.id)
            flags |= {name: flag for name, flag in inherited.items() if name not in flags}
    return flags


def _class(module: str, name: str) -> ast.ClassDef:
    return next(node for node in _tree(module).body if isinstance(node, ast.ClassDef) and node.name == name)


def _docstring(module: str, name: str) -> str:
    return (ast.get_docstring(_class(module, name)) or name).partition("\n")[0].rstrip(".")


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(_source(module).read_text(encoding="utf-8"))


def _source(module: str) -> Path:
    """The file of a module, found without importing the packages that it lies in."""
    package, *inner = module.split(".")
    # Of the package only: to find transformers.training_args, find_spec would import transformers.
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin)
    return path.parent.joinpath(*inner).with_suffix(".py") if inner else path


def _home(name: str, module: str) -> str:
    """The module that a class comes from: this one, or the one that it is imported from; "" for what is built in."""
    for node in _tree(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            if node.level:
                return f"{module.rpartition('.')[0]}.{node.module}"
            # `from transformers import TrainingArguments` is resolved at run time; its source does not say to where.
            return "transformers.training_args" if node.module == "transformers" else node.module
    return ""


def _flag(node: ast.AnnAssign, module: str) -> Flag | None:
    """A field as a flag; None for one that is not given to the class."""
    name, given = node.target.id, {}
    if isinstance(node.value, ast.Call):
        # By place those of `flag`; transformers' own fields name all that they say.
        given = dict(zip(("default", "help", "choices"), node.value.args, strict=False))
        given |= {keyword.arg: keyword.value for keyword in node.value.keywords}
        default = given.get("default")
    else:
        default = node.value
    if _literal(given.get("init")) is False:
        return None
    metadata = given.get("metadata")
    said = {_literal(k): v for k, v in zip(metadata.keys, metadata.values, strict=True)} if metadata else given
    kind = _kind([ast.unparse(part) for part in _alternatives(node.annotation)], _literal(default))
    many = kind.startswith("list[")
    kind = kind.removeprefix("list[").removesuffix("]")
    required = default is None and "default_factory" not in given
    choices = _choices(said.get("choices"), kind, many, module)
    kind = kind if kind in ("int", "float", "bool") else "str"
    value = False if required and kind == "bool" else _literal(default)  # as HfArgumentParser: no bool is required
    nargs, const = _literal(said.get("nargs")), _literal(said.get("const"))
    if many:
        nargs = "+"
    elif kind == "bool" and value is not None:
        nargs, const = "?", True
    said_of = _literal(said.get("help")) or ""
    return Flag(name, kind, required and kind != "bool", value, choices, said_of, nargs, const)


def _alternatives(annotation: ast.expr) -> list[ast.expr]:
    if isinstance(annotation, ast.BinOp):
        return [*_alternatives(annotation.left), *_alternatives(annotation.right)]
    return [annotation]


def _kind(kinds: list[str], default: Any) -> str:
    """Which alternative HfArgumentParser takes: by its own rules, which look at the first two."""
    if len(kinds) == 1:
        return kinds[0]
    if "None" not in kinds:
        return kinds[0] if kinds[1] == "str" else kinds[1]
    if "bool" in kinds:
        return "bool"
    return kinds[0] if kinds[1] == "None" else kinds[1]


def _choices(stated: ast.expr | None, kind: str, many: bool, module: str) -> tuple[str, ...]:
    """Those that the field's metadata states, or the values of its enumeration."""
    if stated is not None:
        return tuple(_literal(stated) or ())
    home = "" if many else _home(kind, module)
    values = _class(home, kind).body if home else []
    return tuple(str(_literal(node.value)) for node in values if isinstance(node, ast.Assign))


def _literal(node: ast.expr | None) -> Any:
    """The value of a literal; None for what is computed."""
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:
        return None
