"""`python -m harness.bench`: what a step of each method costs, as a ratio to the cheapest, measured in one
run.

`memory`: what activation checkpointing saves, counted without computing (`--model`). `sgraf`: what SGR's
tiles gain over scoring caption by caption. `loader [DIRECTORY]`: whether reading and decoding pictures keeps
a trainer busy. `sweep`: what a sweep costs besides its trials. `startup`: time and memory of each command.
`ranking`: ranks of 5,000 x 25,000 similarities against a loop of argsorts. `npc`: a step of NPC on whole
towers against one of clip (`--model`).

Absolute times belong to this machine; the ratios are what to quote.
"""

from __future__ import annotations

import argparse
import os

from harness.lib.command import run


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns the exit code."""
    options = _parse(arguments)
    if options.what == "startup":
        from harness.bench.startup import bench_startup

        bench_startup(options.steps or 3)
        return 0
    if options.what == "sweep":
        from harness.bench.overhead import bench_sweep

        bench_sweep(options.trials)
        return 0
    if options.what == "ranking":
        from harness.bench.ranking import bench_ranking

        os.environ["OMP_NUM_THREADS"] = str(options.threads or os.cpu_count() or 1)
        bench_ranking(options.steps or 3)
        return 0
    import logging

    import torch

    torch.set_num_threads(options.threads or torch.get_num_threads())
    logging.getLogger().setLevel(logging.ERROR)  # open_clip warns of random weights, which are meant here
    if options.what == "sgraf":
        from harness.bench.sgraf import bench_sgraf

        bench_sgraf(options.steps or 3)
        return 0
    if options.what == "memory":
        from harness.bench.memory import bench_memory

        bench_memory(model=options.model)
        return 0
    if options.what == "loader":
        return _loader(options)
    if options.what == "npc":
        from harness.bench.npc import bench_npc

        bench_npc(model=options.model, batch_size=options.batch_size or 8, steps=options.steps or 5)
        return 0
    from harness.bench.methods import bench_methods

    bench_methods(batch_size=options.batch_size or 256, hidden=options.hidden, steps=options.steps or 30)
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m harness.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = ["methods", "memory", "sgraf", "loader", "sweep", "startup", "ranking", "npc"]
    parser.add_argument("what", nargs="?", choices=kinds, default="methods")
    parser.add_argument(
        "folder",
        nargs="?",
        help="loader: a data set's directory (default: pictures of Flickr30K's size, made here)",
    )
    parser.add_argument(
        "--options", default="{}", help="loader: further dataset_options of the directory: '{held_out: 500}'"
    )
    parser.add_argument(
        "--model",
        default="ViT-B-32",
        help="loader, memory, npc: the open_clip model that is trained (default: %(default)s)",
    )
    parser.add_argument(
        "--workers", type=int, default=0, help="loader: worker processes (default: %(default)s)"
    )
    parser.add_argument(
        "--steps",
        type=int,
        help="measured steps of each (default: 30 of methods, 5 of npc, 3 of sgraf, ranking, "
        "loader's trainer and startup)",
    )
    parser.add_argument(
        "--trials", type=int, default=2000, help="sweep: number of trials (default: %(default)s)"
    )
    parser.add_argument("--batch-size", type=int, help="(default: 256; 8 of npc)")
    parser.add_argument(
        "--hidden", type=int, default=256, help="methods: width of heads (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, help="of torch (default: torch's own)")
    return parser.parse_args(arguments)


def _loader(options: argparse.Namespace) -> int:
    from pathlib import Path

    import yaml

    from harness.bench.loader import bench_loader
    from harness.config.plain_yaml import read_yaml
    from harness.data import load_dataset, recognise
    from harness.lib.console import fail

    data = None
    try:
        if options.folder:
            given = read_yaml(options.options)
            data = load_dataset(recognise(Path(options.folder)), folder=options.folder, **given)
    except (ValueError, TypeError, yaml.YAMLError) as error:  # a DataError is a ValueError
        return fail([str(error)])
    bench_loader(
        data,
        model=options.model,
        batch_size=options.batch_size or 256,
        workers=options.workers,
        steps=options.steps or 3,
    )
    return 0


if __name__ == "__main__":
    run(main)
