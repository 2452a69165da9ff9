"""Every training method by its name on the command line. To add one: docs/adding-a-method.md."""

from dcamt.methods.ad_mt import ADMT
from dcamt.methods.bcp import BCP
from dcamt.methods.co_bionet import CoBioNet
from dcamt.methods.cpcl import CPCL
from dcamt.methods.cps import CPS
from dcamt.methods.crossmatch import CrossMatch
from dcamt.methods.dca_mt import DCAMT
from dcamt.methods.dtc import DTC
from dcamt.methods.dual_teacher import DualTeacher
from dcamt.methods.dualfete import DualFete
from dcamt.methods.evil import EVIL
from dcamt.methods.ga import GA
from dcamt.methods.mcf import MCF
from dcamt.methods.mean_teacher import MeanTeacher
from dcamt.methods.method import Method
from dcamt.methods.pi_model import PiModel
from dcamt.methods.pseudo_label import PseudoLabel
from dcamt.methods.sassnet import SASSNet
from dcamt.methods.sdcl import SDCL
from dcamt.methods.ua_mt import UAMT
from dcamt.methods.vnet import Supervised

METHODS: dict[str, type[Method]] = {
    "ad-mt": ADMT,
    "bcp": BCP,
    "co-bionet": CoBioNet,
    "cpcl": CPCL,
    "cps": CPS,
    "crossmatch": CrossMatch,
    "dca-mt": DCAMT,
    "dtc": DTC,
    "dual-teacher": DualTeacher,
    "dualfete": DualFete,
    "evil": EVIL,
    "ga": GA,
    "mcf": MCF,
    "mean-teacher": MeanTeacher,
    "pi-model": PiModel,
    "pseudo-label": PseudoLabel,
    "sassnet": SASSNet,
    "sdcl": SDCL,
    "ua-mt": UAMT,
    "vnet": Supervised,
}
