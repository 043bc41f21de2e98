"""Continuous batching: requests start and finish in a running batch at any step."""

from lucid_deploy.batching.batcher import Batcher
from lucid_deploy.batching.request import Finished, Request, Token

__all__ = ["Batcher", "Finished", "Request", "Token"]
