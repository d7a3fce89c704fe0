"""The table of bad input: what is wrong in one place of a good spec, and what the message must say about it.

Over 300 lines: it is a table.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COMPARISON = """\
name: which
backbones: [tiny-llama2, tiny-mistral]
seeds: 2
recipe:
  data: {train: train.jsonl, validation: validation.jsonl}
  sequence_length: 128
  global_batch_size: 8
  micro_batch_size: 2
  budget: {kind: bytes, amount: 1e5}
  optimizer: {learning_rate: 1e-3, betas: [0.9, 0.95]}
  precision: fp32
placement: {workers: 2}
policy: {timeout: 1h}
"""
FINETUNE = COMPARISON.replace("backbones: [tiny-llama2, tiny-mistral]\nseeds: 2", "backbone: tiny-llama2\nseed: 0")


def row(*roles: str, content: str = "words") -> str:
    return json.dumps({"messages": [{"role": role, "content": f"{content} of {role}"} for role in roles]}) + "\n"


GOOD_FILES = {
    "train.jsonl": row("user", "assistant"),
    "validation.jsonl": row("user", "assistant", content="held out"),
}


@dataclass(frozen=True)
class Case:
    """One bad input. `wants` are parts of the message; `at` is text of the line that the message must name."""

    name: str
    wants: tuple[str, ...]
    edit: tuple[tuple[str, str], ...] = ()
    at: str | None = None
    command: tuple[str, ...] = ("compare", "spec.yaml")
    base: str = COMPARISON
    files: dict[str, str | bytes] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    place: str = "spec.yaml"

    @property
    def spec(self) -> str:
        text = self.base
        for old, new in self.edit:
            assert text.count(old) == 1, (self.name, old)
            text = text.replace(old, new)
        return text

    @property
    def location(self) -> str:
        """`file:line: ` as the message must begin, or `file: ` where no line is to blame."""
        if self.at is None:
            return f"{self.place}: "
        content = self.files.get(self.place, self.spec)
        text = content if isinstance(content, str) else content.decode(errors="replace")
        [line] = [number for number, line in enumerate(text.splitlines(), start=1) if self.at in line]
        return f"{self.place}:{line}: "


def key(name: str, old: str, new: str, *wants: str, **options: Any) -> Case:
    """A case that differs from a good spec in one place, whose line the message must name."""
    return Case(name, wants, ((old, new),), **{"at": (new.splitlines() or [""])[-1].strip(), **options})


def data(name: str, content: str | bytes, *wants: str, **options: Any) -> Case:
    """A case whose training file is bad."""
    return Case(name, wants, **{"files": {"train.jsonl": content}, "place": "train.jsonl", **options})


def raw(name: str, content: str | bytes | None, *wants: str, **options: Any) -> Case:
    """A case whose whole spec file is `content`; None: there is no such file."""
    return Case(name, wants, files={} if content is None else {"spec.yaml": content}, base="", **options)


FULL = "recipe:\n"
BIG = (
    ("[tiny-llama2, tiny-mistral]", "[mistral-v0.1-7b-pure]"),
    ("precision: fp32", "precision: bf16"),
    ("placement: {workers: 2}", "placement: {workers: 1, gpus_per_worker: 1, accelerator: H100}"),
)
IN_RAY_JOB = {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}
MODEL = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 8}
BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))


def reference(name: str, target: str, *wants: str, **files: str | bytes) -> Case:
    folder = {f"model/{file}".replace("__", "."): content for file, content in files.items()}
    return key(name, "tiny-mistral", target, "'backbones.1'", *wants, files=folder, at="backbones:")


def tuned(name: str, tuning: str, *wants: str) -> Case:
    return key(name, "placement: {workers: 2}", f"placement: {{workers: 2}}\ntuning: {tuning}", *wants)


KEYS = [
    tuned(
        "a single learning rate to tune",
        "{learning_rate: [1e-3]}",
        "'tuning.learning_rate' is [0.001]",
        "a list of at least 2",
    ),
    tuned("the same learning rate twice", "{learning_rate: [1e-3, 1e-3]}", "0.001 is listed more than once"),
    tuned(
        "a grid that ends below its start",
        "{learning_rate: {low: 1e-3, high: 1e-4, trials: 3}}",
        "'tuning.learning_rate.high' is 0.0001; it must be above tuning.learning_rate.low, which is 0.001",
    ),
    tuned(
        "a grid without its number of trials",
        "{learning_rate: {low: 1e-4, high: 1e-3}}",
        "'tuning.learning_rate.trials' is missing",
    ),
    tuned(
        "a grid whose trials are all but equal",
        "{learning_rate: {low: 1e-3, high: 1.0001e-3, trials: 9}}",
        "equal to three digits; use fewer",
    ),
    tuned("no rungs", "{learning_rate: [1e-3, 2e-3], rungs: 0}", "'tuning.rungs' is 0; it must be at least 1"),
    tuned(
        "trials longer than a run",
        "{learning_rate: [1e-3, 2e-3], budget_fraction: 2}",
        "'tuning.budget_fraction' is 2; it must be at most 1",
    ),
    tuned(
        "one training example to learn from and to be scored on",
        "{learning_rate: [1e-3, 2e-3]}",
        "whose 1 examples are too few or too unequal",
        "remove tuning",
    ),
    key(
        "tasks of a folder that is not there",
        "precision: fp32",
        "evaluate: {tasks: [piqa], include_path: nowhere}",
        "'recipe.evaluate.include_path' is 'nowhere'",
        "no folder with *.yaml files",
    ),
    key(
        "a folder of tasks without a task",
        "precision: fp32",
        "evaluate: {include_path: .}",
        "'recipe.evaluate.include_path'",
        "name them in tasks, or remove it",
    ),
    key(
        "rollouts without a step",
        "precision: fp32",
        "evaluate: {rollouts: {environment: 'minigrid:BabyAI-GoToLocal-v0', max_steps: 0}}",
        "'recipe.evaluate.rollouts.max_steps' is 0; it must be at least 1",
    ),
    key(
        "rollouts after none of the budget",
        "precision: fp32",
        "evaluate: {rollouts: {environment: 'minigrid:BabyAI-GoToLocal-v0', every: 0.0}}",
        "'recipe.evaluate.rollouts.every' is 0",
    ),
    key(
        "a task twice",
        "precision: fp32",
        "evaluate: {tasks: [piqa, piqa]}",
        "'recipe.evaluate.tasks'",
        "piqa is listed more than once",
    ),
    key(
        "an unknown key in the recipe",
        "precision: fp32",
        "precison: fp32",
        "'recipe.precison'",
        "did you mean 'recipe.precision'?",
    ),
    key("an unknown key at the top", "policy:", "polices:", "unknown key 'polices'", "did you mean 'policy'?"),
    key(
        "an unknown key three levels down",
        "learning_rate",
        "learning_rat",
        "'recipe.optimizer.learning_rat'",
        "did you mean 'recipe.optimizer.learning_rate'?",
        at="learning_rat:",
    ),
    key(
        "an unknown key that belongs elsewhere",
        FULL,
        "recipe:\n  workers: 2\n",
        "'recipe.workers'",
        "did you mean 'placement.workers'?",
        at="  workers: 2",
    ),
    key(
        "an unknown key like no other",
        "{workers: 2}",
        "{workers: 2, zzz: 1}",
        "'placement.zzz'",
        "the keys of placement are workers, gpus_per_worker",
    ),
    key("a key of the other kind of spec", "seeds: 2", "seed: 2", "unknown key 'seed'", "did you mean 'seeds'?"),
    key("a missing key", "name: which\n", "", "'name' is missing; add it", at="backbones:"),
    key(
        "text where a number belongs",
        "global_batch_size: 8",
        "global_batch_size: eight",
        "'recipe.global_batch_size' is \"eight\"",
        "whole number",
    ),
    key("a mapping where text belongs", "name: which", "name: {a: b}", '\'name\' is {"a": "b"}', "text"),
    key(
        "a truth value where a number belongs",
        "global_batch_size: 8",
        "global_batch_size: true",
        "'recipe.global_batch_size' is true",
        "whole number",
    ),
    key(
        "a truth value where a GPU count belongs",
        "{workers: 2}",
        "{workers: 2, gpus_per_worker: true}",
        "'placement.gpus_per_worker' is true",
        "whole number",
    ),
    key(
        "a fraction where a whole number belongs",
        "micro_batch_size: 2",
        "micro_batch_size: 2.5",
        "'recipe.micro_batch_size' is 2.5",
        "auto or a whole number",
    ),
    key(
        "a value that is not one of the choices",
        "precision: fp32",
        "precision: fp16",
        "'recipe.precision' is \"fp16\"; it must be bf16 or fp32",
    ),
    key(
        "a learning rate that is not a number",
        "learning_rate: 1e-3",
        "learning_rate: .nan",
        "'recipe.optimizer.learning_rate' is NaN",
        "finite number",
        at=".nan",
    ),
    key(
        "an infinite budget",
        "amount: 1e5",
        "amount: .inf",
        "'recipe.budget.amount' is Infinity",
        "finite number",
        at=".inf",
    ),
    key(
        "a budget too large for a float",
        "amount: 1e5",
        "amount: 1e999",
        "'recipe.budget.amount' is Infinity",
        "finite number",
        at="1e999",
    ),
    key(
        "a negative batch",
        "global_batch_size: 8",
        "global_batch_size: -8",
        "'recipe.global_batch_size' is -8",
        "above 0",
    ),
    key("a batch as large as the sea", "global_batch_size: 8", "global_batch_size: 1000000000000", "at most 1,000,000"),
    key("a number of many digits", "seeds: 2", f"seeds: {'9' * 5000}", "'seeds' is a number of 5000 digits", "smaller"),
    key(
        "a clock time where a duration belongs",
        "timeout: 1h",
        "timeout: 1:30",
        "'policy.timeout' is \"1:30\"",
        "such as 90s, 30m, 12h or 2d",
        at="1:30",
    ),
    key("a timeout without a unit", "timeout: 1h", "timeout: 30", "'policy.timeout' is 30", "text"),
    key("a timeout of nothing", "timeout: 1h", "timeout: 0s", "'policy.timeout' is \"0s\"", "such as 90s"),
    key("a beta of one", "[0.9, 0.95]", "[0.9, 1.0]", "'recipe.optimizer.betas' is [0.9, 1.0]", "below 1", at="betas"),
    key("one beta", "[0.9, 0.95]", "[0.9]", "'recipe.optimizer.betas' is [0.9]", "a list of at least 2", at="betas"),
    key(
        "a budget in days",
        "kind: bytes",
        "kind: days",
        "'recipe.budget.kind' is \"days\"",
        "steps, flops or gpu_hours",
        at="days",
    ),
    key(
        "half a step",
        "{kind: bytes, amount: 1e5}",
        "{kind: steps, amount: 1.5}",
        "'recipe.budget.amount' is 1.5",
        "round it",
        at="steps",
    ),
    key(
        "a lora rank of nothing",
        FULL,
        "recipe:\n  adaptation: {kind: lora, rank: 0}\n",
        "'recipe.adaptation.rank' is 0",
        "at least 1",
    ),
    key(
        "a price of nothing in particular",
        "policy: {timeout: 1h}",
        "policy: {timeout: 1h}\nprice: {currency: EUR}",
        '\'price\' is {"currency": "EUR"}',
        "give per_gpu_hour, or per_core_hour",
        at="price",
    ),
    key(
        "a constraint that nobody knows",
        "policy: {timeout: 1h}",
        "policy: {timeout: 1h}\nverdict: {constraints: {memory: 24}}",
        "unknown key 'verdict.constraints.memory'",
        "memory_gib",
        at="verdict",
    ),
    key(
        "a constraint that nobody could meet",
        "policy: {timeout: 1h}",
        "policy: {timeout: 1h}\nverdict: {constraints: {licence: []}}",
        "'verdict.constraints.licence' is []",
        at="verdict",
    ),
    key(
        "a rank without lora",
        FULL,
        "recipe:\n  adaptation: {kind: full, rank: 8}\n",
        "'recipe.adaptation.rank' is 8",
        "remove it",
    ),
    key("no seeds", "seeds: 2", "seeds: 0", "'seeds' is 0; it must be above 0"),
    key("a seed twice", "seeds: 2", "seeds: [1, 2, 1]", "'seeds' is [1, 2, 1]", "1 is listed more than once"),
    key("a seed below zero", "seeds: 2", "seeds: [0, -1]", "'seeds.1' is -1", "at least 0"),
    key(
        "a backbone twice",
        "tiny-mistral",
        "tiny-llama2",
        "'backbones' is",
        "tiny-llama2 is listed more than once",
        at="backbones",
    ),
    key("no backbone", "[tiny-llama2, tiny-mistral]", "[]", "'backbones' is []", "a list of at least 1"),
    key(
        "an unknown backbone",
        "tiny-mistral",
        "tiny-mistrall",
        "'backbones.1' is 'tiny-mistrall'",
        "Did you mean `tiny-mistral`",
        at="tiny-mistrall",
    ),
    key(
        "a name that climbs out of the storage",
        "name: which",
        "name: ../../x",
        "'name' is \"../../x\"",
        "letters, digits",
    ),
    key(
        "a name that is no text to a file system",
        "name: which",
        'name: "a\\0b"',
        "'name' is \"a\\u0000b\"",
        "remove it",
    ),
    key(
        "replicas that do not divide",
        "{workers: 2}",
        "{workers: 2, replicas: 4}",
        "'placement.replicas' is 4",
        "2 workers",
        "divisor of placement.workers",
    ),
    key(
        "an accelerator without a GPU",
        "{workers: 2}",
        "{workers: 2, accelerator: H100}",
        "'placement.accelerator' is \"H100\"",
        "gpus_per_worker: 1",
    ),
    key(
        "an accelerator that nobody sells",
        "{workers: 2}",
        "{workers: 2, gpus_per_worker: 1, accelerator: h100}",
        "'placement.accelerator' is 'h100'",
        "did you mean H100?",
    ),
    key(
        "more GPUs than this machine has",
        "{workers: 2}",
        "{workers: 999, gpus_per_worker: 1}",
        "999 x 1 NVIDIA GPU",
        "set RAY_ADDRESS",
        at="placement",
        base=COMPARISON.replace("size: 8", "size: 999").replace("  micro_batch_size: 2\n", ""),
    ),
    key(
        "a batch that the workers cannot share",
        "{workers: 2}",
        "{workers: 3}",
        "'recipe.global_batch_size' is 8",
        "3 workers cannot share equally; set it to 6 or 9",
        at="global_batch_size",
    ),
    key(
        "a micro-batch that does not divide",
        "micro_batch_size: 2",
        "micro_batch_size: 3",
        "'recipe.micro_batch_size' is 3",
        "share of 4 rows; set it to auto or one of 1, 2, 4",
    ),
    key(
        "a context longer than the backbone's",
        "sequence_length: 128",
        "sequence_length: 4096",
        "'recipe.sequence_length' is 4096",
        "tiny-llama2 has a context of 1024 tokens; lower it",
    ),
    key(
        "tracking without a scheme",
        FULL,
        "tracking: {uri: 'mlflow:5000'}\nrecipe:\n",
        "'tracking.uri' is \"mlflow:5000\"",
        "such as http://mlflow:5000",
        at="tracking",
    ),
    Case(
        "a model larger than its GPU",
        (
            "mistral-v0.1-7b-pure needs about",
            "108 for weights, gradients and AdamW state",
            "74 usable GiB of one H100",
            "raise placement.workers to 2",
        ),
        BIG,
        at="placement",
    ),
]

PLACES = [
    key(
        "object storage",
        FULL,
        "storage: s3://bucket/x\nrecipe:\n",
        "'storage' is 's3://bucket/x'",
        "a folder that every node shares",
        at="storage",
    ),
    key(
        "storage below a file",
        FULL,
        "storage: train.jsonl/x\nrecipe:\n",
        "'storage' is 'train.jsonl/x'",
        "is a file; choose another",
        at="storage",
    ),
    key("empty storage", FULL, "storage: ''\nrecipe:\n", "'storage' is \"\"", "text that is not empty", at="storage"),
    Case(
        "no storage inside a Ray job",
        ("'storage' is not set", "set 'storage', or BACKBONE_STORAGE"),
        at="name: which",
        env=IN_RAY_JOB,
    ),
    Case(
        "relative storage inside a Ray job",
        ("BACKBONE_STORAGE is the relative path 'results'", "the absolute path of"),
        at="name: which",
        env={**IN_RAY_JOB, "BACKBONE_STORAGE": "results"},
    ),
    Case(
        "a finetune given to compare",
        ("has 'backbone', so it is a finetune; run `backbone finetune`",),
        base=FINETUNE,
        at="backbone: ",
    ),
    Case(
        "a comparison given to finetune",
        ("has 'backbones', so it is a comparison; run `backbone compare`",),
        command=("finetune", "spec.yaml"),
        at="backbones: ",
    ),
    key(
        "an export folder of somebody else",
        FULL,
        "export: {folder: thesis}\nrecipe:\n",
        "'export.folder' is 'thesis'",
        "not one of our exports; choose a new folder",
        base=FINETUNE,
        command=("finetune", "spec.yaml"),
        files={"thesis/chapter.txt": "years of work"},
        at="thesis",
    ),
    key(
        "an export folder that is a file",
        FULL,
        "export: {folder: train.jsonl}\nrecipe:\n",
        "'export.folder' is 'train.jsonl'",
        "choose a new folder",
        base=FINETUNE,
        command=("plan", "spec.yaml"),
        at="export",
    ),
    reference("a model folder that is missing", "'hf:./model'", "'hf:./model': there is no folder", "hf:ORG/NAME"),
    reference("a model folder without a config", "'hf:./model'", "there is no config.json", readme="hello"),
    reference(
        "a model folder with pickled weights only",
        "'hf:./model'",
        "no *.safetensors file",
        "save_pretrained",
        config__json=json.dumps(MODEL),
        pytorch_model__bin=b"\x80\x04",
    ),
    reference(
        "a model that brings its own code",
        "'hf:./model'",
        "auto_map",
        "never run",
        config__json=json.dumps({**MODEL, "auto_map": {}}),
    ),
    reference(
        "a model with a broken weights file",
        "'hf:./model'",
        "model.safetensors",
        config__json=json.dumps(MODEL),
        model__safetensors=b"\xff" * 64,
    ),
]

FILES = [
    raw(
        "no spec file",
        None,
        "no such file; did you mean",
        "spec.yaml?",
        command=("compare", "spce.yaml"),
        place="spce.yaml",
    ),
    raw("a folder as spec", None, "is a folder; give the path", command=("compare", "."), place="."),
    raw("an empty file", "", "holds nothing, not a spec"),
    raw("a list", "- name: which\n- seeds: 2\n", "holds a list, not a spec", "`backbone schema`"),
    raw("a single word", "which", "holds a single value"),
    raw(
        "a tab as indentation",
        "name: which\nrecipe:\n\tprecision: bf16\n",
        "not valid YAML",
        "indent with spaces, not tabs",
        at="\tprecision",
    ),
    raw("an unclosed bracket", "name: which\nbackbones: [a, b\nseeds: 2\n", "not valid YAML", at="seeds"),
    raw("an alias bomb", BOMB, "the alias *a0 is not allowed; write the value out", at="a1:"),
    raw("a list nested a thousand deep", "name: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
    raw("a file in another encoding", "name: gr\u00fc\u00dfe".encode("latin-1"), "not UTF-8 text", "save it as UTF-8"),
    raw("a file as large as data", "name: which\n# " + "x" * 200_000, "larger than 100,000 bytes"),
    raw(
        "a Python object",
        "name: !!python/object/apply:os.system ['touch hacked']",
        "'name' has the type !!python/object/apply:os.system",
        at="name",
    ),
    raw("binary text", "name: !!binary aGVsbG8=", "'name' has the type !!binary", at="name"),
    Case(
        "a key given twice",
        ("duplicate key 'recipe.precision' (first on line 11); keep one",),
        (("  precision: fp32\n", "  precision: fp32\n  precision: bf16\n"),),
        at="bf16",
    ),
    key(
        "an alpha that no interval has",
        "policy: {timeout: 1h}",
        "policy: {timeout: 1h}\nverdict: {alpha: 1e-9}",
        "'verdict.alpha'",
        "1e-06",
    ),
    Case("a key that is a number", ("the key 3, which is no text; quote it",), (("policy:", "3:"),), at="3: {"),
]

ROWS = [
    key(
        "training data that is missing",
        "train: train.jsonl",
        "train: trian.jsonl",
        "'recipe.data.train' is 'trian.jsonl': no such file or folder",
        "JSONL",
        at="trian",
    ),
    key(
        "data of another kind of file",
        "train: train.jsonl",
        "train: spec.yaml",
        "'recipe.data.train' is 'spec.yaml'",
        ".jsonl",
        at="train:",
    ),
    key(
        "built-in data that does not exist",
        "train: train.jsonl",
        "train: 'builtin:wiki'",
        "'recipe.data.train' is 'builtin:wiki'",
        "builtin:stdlib",
        at="builtin",
    ),
    key(
        "training data that is all held out",
        "train: train.jsonl",
        "train: validation.jsonl",
        "every example of it is also held out",
        "that recipe.data.validation does not have",
        at="train:",
    ),
    data(
        "an empty data set",
        "\n\n",
        "'recipe.data.train' is 'train.jsonl', which holds no rows",
        place="spec.yaml",
        at="train:",
    ),
    data(
        "a row that is not JSON",
        row("user", "assistant") + "{'messages': []}\n",
        "not valid JSON",
        "column 2",
        at="{'messages",
    ),
    data("a row that is a list", "[1, 2]\n", "the row is [1, 2]", '{"messages": [', at="[1"),
    data("a row without an answer", row("user"), "no assistant turn", "add one", at="user"),
    data(
        "roles in the wrong order",
        row("user", "user", "assistant"),
        "roles user, user, assistant",
        "must alternate",
        at="user",
    ),
    data(
        "a role of its own",
        row("user", "wizard"),
        "'messages.1.role' is \"wizard\"; use system, user or assistant",
        at="wizard",
    ),
    data(
        "an answer without words",
        '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": " "}]}\n',
        "'messages.1.content' is \" \"",
        "not empty",
        at="user",
    ),
    data(
        "rows of another format",
        '{"prompt": "x", "completion": "y"}\n',
        "'messages' is missing",
        "set recipe.data.format to prompt_completion",
        at="prompt",
    ),
    data(
        "half a character",
        '{"messages": [{"role": "user", "content": "\\ud83d"}]}\n',
        "'messages.0.content'",
        "surrogate",
        at="user",
    ),
    data("a data file in another encoding", b'{"messages": "\xe9"}\n', "not UTF-8 text", "save it as UTF-8", at="mess"),
    data("a row nested a hundred thousand deep", "[" * 100_000 + "\n", "not valid JSON", at="[[["),
    data(
        "more bad rows than anybody reads",
        "nonsense\n" * 1000,
        "correct these 10 rows first",
        place="spec.yaml",
        at="train:",
    ),
]

MIXED = Case(
    "one of two does not fit",
    ("phi-2-3b needs about", "or run the others with --skip-infeasible"),
    (("tiny-mistral", "phi-2-3b"), ("{workers: 2}", "{workers: 1, gpus_per_worker: 1, accelerator: T4}")),
    at="placement",
)
CASES = [*KEYS, *PLACES, *FILES, *ROWS, MIXED]

SEVERAL = Case(
    "everything at once",
    (
        "spec.yaml:1: 'name' is \"../x\"",
        "spec.yaml:2: 'backbones.1' is 'tiny-mistrall'",
        "spec.yaml:7: 'recipe.global_batch_size' is -8",
        "spec.yaml:11: unknown key 'recipe.precison'; did you mean 'recipe.precision'?",
        "spec.yaml:14: 'storage' is 's3://bucket'",
        "train.jsonl:1: 'messages' has no assistant turn",
        "train.jsonl:2: not valid JSON",
    ),
    (
        ("name: which", "name: ../x"),
        ("tiny-mistral", "tiny-mistrall"),
        ("global_batch_size: 8", "global_batch_size: -8"),
        ("precision: fp32", "precison: fp32"),
        ("policy: {timeout: 1h}\n", "policy: {timeout: 1h}\nstorage: s3://bucket\n"),
    ),
    files={"train.jsonl": row("user") + "nonsense\n"},
)


def write_case(case: Case, folder: Path) -> list[str]:
    """Writes a case's files and returns the sorted names of all of them."""
    for name, content in {"spec.yaml": case.spec, **GOOD_FILES, **case.files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
