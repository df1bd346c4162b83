"""The subcommand `doctor`: what is seen of an installation, what is to be said of it, and how it is shown."""
