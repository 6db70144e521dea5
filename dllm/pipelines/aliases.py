"""Settings of samplers under the names that dLLM 0.1 gave them."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar


class WithAliases:
    """Part of a sampler whose config has second names of settings; a value under a second name is used for the first.

    Attributes:
        aliases: {second name: first name}. The fields of second names are None unless they are given.
    """

    aliases: ClassVar[dict[str, str]] = {}

    def _settings(self, config: Any, overrides: dict[str, Any]) -> Any:
        """The checked settings, with None under all second names.

        Raises:
            TypeError, ValueError: a setting breaks a rule.
        """
        config = super()._settings(config, overrides)
        given = {first: getattr(config, second) for second, first in self.aliases.items()}
        given = {first: value for first, value in given.items() if value is not None}
        config = dataclasses.replace(config, **given, **dict.fromkeys(self.aliases))
        config.check()
        return config
