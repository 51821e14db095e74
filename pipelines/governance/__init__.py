"""Uses of registered models: commands that follow an alias, model cards, and exports to other registries."""
