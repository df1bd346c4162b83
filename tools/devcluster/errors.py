"""The one exception of this package."""


class DevClusterError(Exception):
    """Something of the development cluster could not be found, built, started or asked; the message says what to do."""
