"""The subcommands that need only the core, one module each."""
