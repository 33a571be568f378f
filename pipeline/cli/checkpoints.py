"""The commands of `rlhf` that judge checkpoints, talk with them and score with them."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data.words import counted
from pipeline.cli.options import (
    CorpusOption,
    PassagesOption,
    PassageTokensOption,
    PluginOption,
    QuietOption,
    RetrieveOption,
    ToolFormOption,
    ToolsOption,
    load_plugins,
    reading_of,
    source_of,
    tools_of,
)

if TYPE_CHECKING:
    from data.labels.store.database import Database
    from pipeline.contract.console import Console
    from pipeline.evaluation.judge.people import People
    from pipeline.evaluation.judge.standalone import Request

PromptsOption = Annotated[
    str | None, typer.Option(help="File of prompts, or world:eval_prompts for the embedded world.")
]
TextsOption = Annotated[
    str | None, typer.Option(help="File of held-out text for the perplexity, or world:PART.")
]
ReferenceOption = Annotated[
    str | None, typer.Option(help="Checkpoint KL is measured to; sft when there, else the first.")
]
PlainOption = Annotated[list[str] | None, typer.Option(help="Checkpoint that is given plain text.")]
BestOfOption = Annotated[
    int | None,
    typer.Option(
        min=2,
        max=256,
        metavar="N",
        help="Answers a prompt drawn from the reference: tells how far choosing the best by "
        "the reward model can be trusted.",
    ),
]
SuiteOption = Annotated[
    list[str] | None,
    typer.Option(metavar="FILE|NAME", help="Benchmark tasks: a YAML file of `tasks`, or world."),
]

PeopleOption = Annotated[
    str | None,
    typer.Option(
        metavar="DIR[=OVERLAP]",
        help="People compare the answers, not knowing whose they are: a run folder, or --out, to "
        "name to `rlhf label serve`; two people compare OVERLAP (0.2) of the pairs.",
    ),
]
RewardOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PLACE[=WEIGHT]",
        help="Reward model that judges as proxy; given again, their weighted sum.",
    ),
]
JudgeOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=JUDGE",
        help="Further judge: a reward model's place, http://... of a server that scores, or "
        "{kind: llm, url: http://HOST/v1, model: NAME, key_variable: VARIABLE}; repeatable.",
    ),
]
PrefixTokensOption = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Of documents the first N tokens are prompts."),
]
TemperatureOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="0 takes the likeliest token. Where it, top-k or top-p are not given, they are each "
        "checkpoint's own, by its generation_config.json, else 1, 0 and 1.",
    ),
]
TopKOption = Annotated[int | None, typer.Option(min=0, help="Draw among so many; 0 for all.")]
TopPOption = Annotated[
    float | None, typer.Option(min=0, max=1, help="Draw among the likeliest that reach this sum.")
]
MaxNewTokensOption = Annotated[int | None, typer.Option(min=1, help="Most of an answer; 64.")]
BF16Option = Annotated[
    str | None, typer.Option(metavar="true|false|auto", help="Compute in bfloat16.")
]
GuidelinesOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="What these people read first, Markdown.")
]


def evaluate(
    context: typer.Context,
    checkpoints: Annotated[
        list[str],
        typer.Argument(help="Stage folders, model folders or hub ids; NAME=PLACE names one."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the report and what it is counted from.")],
    prompts: PromptsOption = None,
    suite: SuiteOption = None,
    texts: TextsOption = None,
    reward: RewardOption = None,
    judge: JudgeOption = None,
    people: PeopleOption = None,
    guidelines: GuidelinesOption = None,
    reference: ReferenceOption = None,
    plain: PlainOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many prompts.")] = None,
    best_of: BestOfOption = None,
    retrieve: RetrieveOption = None,
    passages: PassagesOption = None,
    passage_tokens: PassageTokensOption = None,
    prefix_tokens: PrefixTokensOption = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    max_new_tokens: MaxNewTokensOption = None,
    tools: ToolsOption = None,
    corpus: CorpusOption = None,
    tool_form: ToolFormOption = None,
    plugin: PluginOption = None,
    bf16: BF16Option = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1)] = 0,
    quiet: QuietOption = False,
) -> None:
    """Judge checkpoints on the same prompts and tasks; the report is OUT/index.html."""
    from pipeline.contract.console import Console
    from pipeline.evaluation.judge.standalone import Request
    from pipeline.recipe.answers import parse_answers
    from pipeline.recipe.judges import parse_judges
    from pipeline.recipe.suite import load_suites

    load_plugins(plugin)
    request = Request(
        checkpoints=named(checkpoints),
        prompts=source_of(prompts) if prompts else None,
        texts=source_of(texts) if texts else None,
        rewards=weighted(reward or []),
        judges=parse_judges(judge or []),
        reference=reference,
        plain=plain or [],
        limit=limit,
        answers=parse_answers(context.params | {"tools": tools_of(tools, corpus, tool_form)}),
        seed=seed,
        tasks=load_suites(suite or []),
        best_of=best_of or 0,
        people=people_of(people, out, guidelines),
        retrieve=reading_of(retrieve, passages, passage_tokens),
    )
    evaluated(request, out, Console(quiet=quiet))


def evaluated(request: Request, out: Path, console: Console) -> dict[str, Any]:
    """Evaluate checkpoints and write the report; return what `evaluation.json` holds."""
    from data.storage import require_file_place
    from pipeline.contract.artifacts import require_writable_place
    from pipeline.contract.stop import StopFlag
    from pipeline.evaluation.judge.standalone import evaluate_checkpoints
    from pipeline.evaluation.report.report import PAGES, write_evaluation_report
    from pipeline.evaluation.report.table import answers_table

    require_writable_place(out)
    for name in PAGES:
        require_file_place(out / name)
    with StopFlag().installed() as stop:
        results = evaluate_checkpoints(
            _with_origins(request), out=out, console=console, stop_if_asked=stop.raise_if_asked
        )
    console.say(f"report: {write_evaluation_report(out)}")
    if request.people is not None and results["judges"]["people"]["open"]:
        # Whoever reads this may be one of those who compare: no answer is shown with its name.
        for line in still_open(results, request.people.run):
            console.say(line)
    elif request.prompts is not None and not console.quiet:
        typer.echo(answers_table(out))
    return results


def _with_origins(request: Request) -> Request:
    """Return the request with what is known of how its checkpoints came to be."""
    from pipeline.contract.retrieval import with_readers
    from pipeline.evaluation.judge.overlap import seen_before
    from pipeline.run.origins import origins

    known = origins(request.checkpoints)
    request = replace(request, paid_by=known.paid_by)
    if not known.readings:
        return request
    seen = partial(seen_before, readings=known.readings, elsewhere=known.elsewhere)
    made_by = with_readers(known.made_by, request.retrieve)
    return replace(request, seen=seen, made_by=made_by)


def people_of(text: str | None, out: Path, guidelines: Path | None) -> People | None:
    """Return how people are asked by `--people`, None where they are not."""
    from data.errors import UsageError, in_words
    from pipeline.evaluation.judge.people import People

    if text is None:
        if guidelines is not None:
            raise UsageError("--guidelines is for people: name where they label by --people")
        return None
    place, equals, number = text.rpartition("=")
    run, overlap = Path(place if equals else text), People.overlap
    try:
        overlap = float(number) if equals else overlap
        read = guidelines.read_text(encoding="utf-8") if guidelines is not None else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--guidelines {guidelines} can't be read: {in_words(error)}") from error
    except ValueError:
        overlap = math.nan
    if not 0 <= overlap <= 1:
        raise UsageError(f"--people {text}: write DIR or DIR=0.5, a share of the pairs")
    return People(run=run, opened=partial(_labels, run, out), overlap=overlap, guidelines=read)


@contextmanager
def _labels(run: Path, out: Path) -> Iterator[Database]:
    """Give the label database of a run folder, or of the evaluation's own, which may be new."""
    from pipeline.cli.label_store import opened

    if run.resolve() == out.resolve():
        run.mkdir(parents=True, exist_ok=True)
    with opened(run, None, create=True) as database:
        yield database


def still_open(results: Mapping[str, Any], run: Path) -> list[str]:
    """Return the commands to go on with while people have not said all yet."""
    from pipeline.evaluation.judge.summary import open_lines

    campaign = results["judges"]["people"]["campaign"]
    serve = ["rlhf", "label", "serve", str(run), "--campaign", campaign]
    return [
        *(f"{line}; serve them, and count again later:" for line in open_lines(results)),
        f"  {shlex.join(serve)}",
        f"  {shlex.join(['rlhf', *sys.argv[1:]])}",
    ]


def named(checkpoints: list[str]) -> dict[str, str]:
    """Return name -> place; a place without a name is called by its last folder."""
    from data.errors import UsageError

    places: dict[str, str] = {}
    for text in checkpoints:
        name, equals, place = text.partition("=")
        if not equals:
            name, place = Path(text).name, text
        if not name.strip() or not place.strip():
            raise UsageError(f"'{text}' is no checkpoint; write PLACE or NAME=PLACE")
        if name in places:
            raise UsageError(f"two checkpoints are called '{name}'; write NAME={place} for one")
        places[name] = place
    return places


def weighted(rewards: list[str]) -> dict[str, float]:
    """Return place -> weight, which is 1 where none is given."""
    from data.errors import UsageError

    weights: dict[str, float] = {}
    for text in rewards:
        place, equals, number = text.rpartition("=")
        if not equals:
            place, number = text, "1"
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not place.strip() or not math.isfinite(weight):
            raise UsageError(f"--reward {text} has no weight; write PLACE or PLACE=0.5")
        if place in weights:
            raise UsageError(f"--reward names {place} twice; give it once, with the whole weight")
        weights[place] = weight
    return weights


def chat(
    checkpoints: Annotated[
        list[str], typer.Argument(help="Stage folders, model folders or hub ids.", metavar="CKPT")
    ],
    temperature: Annotated[float, typer.Option(min=0)] = 0.7,
    top_p: Annotated[float, typer.Option(min=0, max=1)] = 1.0,
    top_k: Annotated[int, typer.Option(min=0)] = 0,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    seed: Annotated[int | None, typer.Option(min=0, max=2**32 - 1)] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Continue plain text.")] = False,
    tools: ToolsOption = None,
    corpus: CorpusOption = None,
    tool_form: ToolFormOption = None,
    plugin: PluginOption = None,
    retrieve: RetrieveOption = None,
    passages: PassagesOption = None,
    passage_tokens: PassageTokensOption = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code a checkpoint carries.")
    ] = False,
) -> None:
    """Talk with a checkpoint, or with several side by side."""
    from pipeline.cli.chat import chat as talk
    from pipeline.generation.generate import Sampling
    from pipeline.recipe.answers import parse_answers

    load_plugins(plugin)

    talk(
        checkpoints,
        Sampling(max_new_tokens, temperature, top_k, top_p),
        seed=seed,
        system=system,
        plain=plain,
        tools=parse_answers({"tools": tools_of(tools, corpus, tool_form)}).tools,
        reading=reading_of(retrieve, passages, passage_tokens),
        trust_remote_code=trust_remote_code,
    )


def score(
    model: Annotated[
        str,
        typer.Argument(
            help="Reward model (stage or model folder, hub id), rule:NAME, function:NAME, http://..."
        ),
    ],
    source: Annotated[
        Path,
        typer.Argument(
            help="Rows of prompt with response, completions (and ranks), or chosen and rejected."
        ),
    ],
    out: Annotated[Path, typer.Option(help="JSONL to write, the rows with their scores.")],
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    limit: Annotated[
        int | None, typer.Option(min=1, max=sys.maxsize, help="At most so many rows.")
    ] = None,
    plugin: PluginOption = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="A=B", help="Option of a rule, function or server."),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="OURS=THEIRS", help="Column of the file, as in a recipe."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Score responses with a reward model, rule, function or server; judge it by ranked ones."""
    from pipeline.cli.score_file import parse_columns, parse_options, score_file
    from pipeline.cli.score_report import quality_lines
    from pipeline.contract.console import Console

    load_plugins(plugin)
    console = Console(quiet=quiet or as_json)
    with console.progress(None, "scoring", unit="texts") as progress:
        report = score_file(
            model,
            source,
            out,
            batch_size=batch_size,
            limit=limit,
            options=parse_options(options or []),
            columns=parse_columns(columns or []),
            advance=progress.advance,
        )
    quality = report.quality()
    if as_json:
        typer.echo(json.dumps({**report.to_json(), "quality": quality}, indent=2))
        return
    counts = f"{counted(report.rows, 'row')}, {counted(report.texts, 'text')}"
    console.say(f"{out}: {counts}, mean score {report.mean:.4g}")
    for why, count in report.unjudged.most_common():
        console.say(f"not judged by {counted(count, 'row')} with ranks: {why}")
    for line in quality_lines(quality) if quality else ():
        console.say(line)
