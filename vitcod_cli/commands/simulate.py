"""``vitcod simulate``: what a mask buys on the paper's accelerator. Needs numpy only."""

from __future__ import annotations

from vitcod_cli.accelerator.settings import SimulateOptions
from vitcod_cli.cli.console import console, print_json, print_result


def simulate(options: SimulateOptions) -> None:
    """Estimate what a mask buys on an accelerator such as the paper's, or count as the published program does.

    The estimate takes all heads, traffic, energy and the linear layers into account, and compares the mask with
    none, and with ways to compute it, on the same chip. docs/accelerator.md says what it assumes.
    """
    from vitcod_cli.accelerator import report, run
    from vitcod_cli.accelerator.hardware import default_yaml
    from vitcod_cli.accelerator.sweep import sweep

    if options.print_hardware:
        lines = default_yaml().splitlines()
    elif options.sweep:
        rows = sweep(options, console())
        lines = report.sweep_lines(rows)
        if options.result.json:
            print_json({"rows": rows})
            return
    elif options.model == "published":
        cycles = run.simulate_published(options)
        lines = report.published_lines(cycles)
        if options.result.json:
            print_json({"model": "published", "revision": options.revision or "v3", **cycles.to_dict()})
            return
    else:
        simulation = run.simulate(options)
        lines = report.simulation_lines(simulation)
        if options.plot is not None:
            from vitcod_cli.accelerator.draw import save_plot

            save_plot(simulation, options.plot, simulation.name)
        if options.result.json:
            print_json(simulation.to_dict())
            return
    for line in lines:
        print_result(line)
