"""Federated methods for any Flower project: server strategies and their client halves.

Nothing here needs the rest of fedbench: flwr, torch and numpy are enough.
"""

from .apfl import APFL, APFLRule
from .asynchronous import Asynchronous
from .attacks import Attack, GaussianNoise, LabelFlip, ModelReplacement, SignFlip, attackers
from .ccvr import CCVR, CCVRRule
from .client import RuleClient, weighted_cross_entropy
from .ditto import Ditto, DittoRule
from .errors import StrategyError
from .fedadam_cosine import FedAdamCosine
from .fedasync import FedAsync, FedAsyncRule
from .fedavg_ft import FedAvgFT, FedAvgFTRule
from .fedbabu import FedBABU, FedBABURule
from .fedbn import FedBN, FedBNRule
from .fedbuff import FedBuff
from .feddyn import FedDyn, FedDynRule
from .fedlc import FedLC, FedLCRule
from .fednova import FedNova, FedNovaRule
from .fedntd import FedNTD, FedNTDRule
from .fedper import FedPer, FedPerRule
from .fedproto import FedProto, FedProtoRule
from .fedprox import FedProxRule
from .fedrep import FedRep, FedRepRule
from .fedsam import FedSAM, FedSAMRule
from .finetuned import FineTuned
from .fpl import FPL, FPLRule
from .ggeur import GGEUR, GGEURClient
from .keep_local import KeepLocal, local_names
from .lg_fedavg import LGFedAvg, LGFedAvgRule
from .local import DataRule, Examples, FineTune, LocalRule, Phase, Round, Upload
from .local_only import LocalOnly, LocalOnlyRule
from .method import Method
from .moon import Moon, MoonRule
from .niw import FedHB, FedHBRule, NIWMeta, NIWRule
from .optim import SGD, Adam
from .perfedavg import PerFedAvg, PerFedAvgRule
from .pfedme import PFedMe, PFedMeRule
from .qfedavg import QFedAvgRule
from .scaffold import Scaffold, ScaffoldRule
from .seen_rows import SeenRows, averaging_seen_rows
from .state import load_state_dict, state_dict

__all__ = [
    "APFL",
    "CCVR",
    "FPL",
    "GGEUR",
    "SGD",
    "APFLRule",
    "Adam",
    "Asynchronous",
    "Attack",
    "CCVRRule",
    "DataRule",
    "Ditto",
    "DittoRule",
    "Examples",
    "FPLRule",
    "FedAdamCosine",
    "FedAsync",
    "FedAsyncRule",
    "FedAvgFT",
    "FedAvgFTRule",
    "FedBABU",
    "FedBABURule",
    "FedBN",
    "FedBNRule",
    "FedBuff",
    "FedDyn",
    "FedDynRule",
    "FedHB",
    "FedHBRule",
    "FedLC",
    "FedLCRule",
    "FedNTD",
    "FedNTDRule",
    "FedNova",
    "FedNovaRule",
    "FedPer",
    "FedPerRule",
    "FedProto",
    "FedProtoRule",
    "FedProxRule",
    "FedRep",
    "FedRepRule",
    "FedSAM",
    "FedSAMRule",
    "FineTune",
    "FineTuned",
    "GGEURClient",
    "GaussianNoise",
    "KeepLocal",
    "LGFedAvg",
    "LGFedAvgRule",
    "LabelFlip",
    "LocalOnly",
    "LocalOnlyRule",
    "LocalRule",
    "Method",
    "ModelReplacement",
    "Moon",
    "MoonRule",
    "NIWMeta",
    "NIWRule",
    "PFedMe",
    "PFedMeRule",
    "PerFedAvg",
    "PerFedAvgRule",
    "Phase",
    "QFedAvgRule",
    "Round",
    "RuleClient",
    "Scaffold",
    "ScaffoldRule",
    "SeenRows",
    "SignFlip",
    "StrategyError",
    "Upload",
    "attackers",
    "averaging_seen_rows",
    "load_state_dict",
    "local_names",
    "state_dict",
    "weighted_cross_entropy",
]
