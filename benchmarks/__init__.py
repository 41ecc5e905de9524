"""What the product does and how fast, beside a peer or a floor: `python -m benchmarks.NAME --json`."""

import cli  # noqa: F401 (its threads wait as they do in every process of the product)
