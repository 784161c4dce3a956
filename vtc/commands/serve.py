"""``vtc serve`` answers OpenAI's chat completions with a pruned model: its options."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from .options import Device, Dtype, Import, Keep, cell_of, import_all, known_model, refuse_methods

Allow = Annotated[
    str | None,
    typer.Option(
        help="What requests may ask for, comma-separated: methods, such as dart or 'random(layer=2)'; 'dart(...)' with "
        "any parameters; all that run on the model; unpruned (default: --pruner and unpruned; without --pruner a few "
        "methods)."
    ),
]
Key = Annotated[
    str | None,
    typer.Option(
        envvar="VTC_API_KEY",
        show_envvar=True,
        help="What clients must send. The variable is safer: other users of this machine see a command's options.",
    ),
]


def serve(
    model: Annotated[
        str | None,
        typer.Argument(callback=known_model, help="Folder or hub id of a transformers VLM; bundled if left out."),
    ] = None,
    pruner: Annotated[
        str | None,
        typer.Option(
            help="Method, pipeline or folder of `vtc tune`; else what is saved beside the model, or unpruned."
        ),
    ] = None,
    keep: Keep = None,
    allow: Allow = None,
    min_keep: Annotated[str | None, typer.Option(help="Least that requests may keep: 0.05 or 16.")] = None,
    max_keep: Annotated[str | None, typer.Option(help="Most that requests may keep: 0.5 or 256.")] = None,
    name: Annotated[str | None, typer.Option(help="What clients call the model (default: its id or folder).")] = None,
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes any free one.")] = 8000,
    api_key: Key = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 1024,
    prompt_tokens: Annotated[int, typer.Option(help="Longest prompt, visual tokens included.")] = 16384,
    pictures: Annotated[int, typer.Option(help="Most pictures of a request.")] = 8,
    picture_megapixels: Annotated[int, typer.Option(help="Largest picture, in millions of pixels.")] = 32,
    body_mb: Annotated[int, typer.Option(help="Largest request, pictures included.")] = 20,
    text_chars: Annotated[int, typer.Option(help="Longest text of a request.")] = 100_000,
    seconds: Annotated[float, typer.Option(help="Longest time of a request, from arrival to its end.")] = 120.0,
    queue: Annotated[int, typer.Option(help="Requests that may wait; more are told to come back.")] = 16,
    remote_pictures: Annotated[
        bool, typer.Option("--remote-pictures", help="Fetch pictures that clients name by a public web address.")
    ] = False,
    page: Annotated[bool, typer.Option(help="A page at / to look at answers and kept tokens.")] = True,
    positions: Annotated[
        str, typer.Option(help="keep, or compact: kept tokens numbered without gaps, as engines such as vLLM do.")
    ] = "keep",
    imports: Import = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Serve MODEL with pruned visual tokens to OpenAI clients, and a page to look at what is kept.

    Exit code 0: stopped by Ctrl-C or SIGTERM. 2: bad input, or it could not start.
    """
    from vtc.eval.vlm.pruning_settings import DEFAULT_METHODS, parse_keep, split_list

    import_all(imports)
    cell = cell_of(pruner, keep, model)
    low, high = (None if bound is None else parse_keep(bound) for bound in (min_keep, max_keep))
    wanted = None if allow is None else split_list(allow)
    refuse_methods((text.replace("(...)", "") for text in wanted or ()), "all", "unpruned")
    from vtc.serve.requests.limits import Limits
    from vtc.serve.requests.pruning_choice import UNPRUNED, Allowed
    from vtc.serve.settings import ServerSettings, served_name

    Allowed.read(None, None, (), low, high)  # the bounds alone: what else is allowed is known behind the methods
    settings = ServerSettings(
        name=name or served_name(model or "bundled"),
        limits=Limits(
            body_mb=body_mb,
            picture_megapixels=picture_megapixels,
            pictures=pictures,
            text_chars=text_chars,
            prompt_tokens=prompt_tokens,
            max_tokens=max_tokens,
            seconds=seconds,
            queue=queue,
            remote_pictures=remote_pictures,
        ),
        host=host,
        port=port,
        key=api_key,
        page=page,
        positions=positions,
    )
    from vtc.serve.run_server import check_extra

    check_extra()
    from vtc.eval.inspect.ask import saved_cell
    from vtc.eval.vlm.loading import load_model
    from vtc.pruners.registry import list_pruners
    from vtc.serve.run_server import run

    cell = cell or saved_cell(model)
    spec = None if cell.spec == UNPRUNED else cell.spec
    usual = [UNPRUNED] if spec else [*DEFAULT_METHODS, UNPRUNED]
    if wanted is not None and "all" in wanted:
        usual, wanted = [*(text for text in wanted if text != "all"), *list_pruners()], None
    allowed = Allowed.read(spec, None, usual if wanted is None else wanted, low, high)
    raise typer.Exit(run(load_model(model, device, dtype), replace(settings, allowed=allowed), wanted))
