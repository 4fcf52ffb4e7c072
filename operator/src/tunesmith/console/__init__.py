"""The web console's server. It has no rights: what it does, it does as whoever asks.

In the cluster each request brings the user's own token (`python -m tunesmith.console`); on a user's machine it is
`tunesmith console`, with the user's kubeconfig. The pages are in operator/console.
"""
