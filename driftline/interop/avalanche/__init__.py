"""Avalanche's benchmarks and strategies here, our streams, learners and parts there (avalanche-lib 0.6.0).

Importing this imports Avalanche, which takes seconds; nothing else in driftline does.
"""

from driftline.errors import ConfigError

try:
    import avalanche as _avalanche  # noqa: F401
except ImportError as error:
    raise ConfigError(f'driftline.interop.avalanche: {error}; pip install "driftline[avalanche]"') from error

from driftline.interop.avalanche.incoming import from_avalanche
from driftline.interop.avalanche.learner import AvalancheLearner
from driftline.interop.avalanche.outgoing import to_avalanche
from driftline.interop.avalanche.plugin import as_plugin
from driftline.interop.avalanche.strategy import DriftlineStrategy

__all__ = ["AvalancheLearner", "DriftlineStrategy", "as_plugin", "from_avalanche", "to_avalanche"]
