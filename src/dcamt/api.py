"""The commands as functions, for notebooks and scripts; ``dcamt.train`` and so on."""

from dcamt.commands.card import card
from dcamt.commands.compare import ablate, compare
from dcamt.commands.cost import cost
from dcamt.commands.demo import demo
from dcamt.commands.distill import distill
from dcamt.commands.doctor import doctor
from dcamt.commands.evaluate import evaluate
from dcamt.commands.export import export
from dcamt.commands.federate import federate
from dcamt.commands.inspect import inspect
from dcamt.commands.predict import predict
from dcamt.commands.prepare import prepare
from dcamt.commands.pretrain import pretrain
from dcamt.commands.rank import rank
from dcamt.commands.report import report
from dcamt.commands.train import train
from dcamt.commands.view import view

__all__ = [
    "ablate",
    "card",
    "compare",
    "cost",
    "demo",
    "distill",
    "doctor",
    "evaluate",
    "export",
    "federate",
    "inspect",
    "predict",
    "prepare",
    "pretrain",
    "rank",
    "report",
    "train",
    "view",
]
