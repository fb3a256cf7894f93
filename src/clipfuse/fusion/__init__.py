"""Fusion methods, a line each: the table of contents.

Adding one takes its file and its line here; the contract tests, the command line and the docs pick it up.
"""

from clipfuse.fusion.ada_svd import ada_svd  # weights from how much inputs lie in leading directions
from clipfuse.fusion.adamerging import adamerging  # coefficients learned by entropy on unlabelled images
from clipfuse.fusion.adarank import adarank  # singular directions chosen by entropy
from clipfuse.fusion.arithmetic import simple_average, task_arithmetic, weighted_average  # means and sums
from clipfuse.fusion.cart import cart  # leading directions around the average
from clipfuse.fusion.concrete import concrete  # a shared mask learned by entropy
from clipfuse.fusion.consensus import consensus  # entries that many tasks want
from clipfuse.fusion.continual import continual_average, continual_task_arithmetic, continual_ties  # one at a time
from clipfuse.fusion.dare import dare  # edit: drop and rescale
from clipfuse.fusion.della import della  # edit: drop by magnitude and rescale
from clipfuse.fusion.doge import doge_ta  # a learned shift of all task vectors
from clipfuse.fusion.dop import dop  # one at a time: drawn to both of a pair where it matters to them
from clipfuse.fusion.factors import factors  # edit: scale or negate single experts
from clipfuse.fusion.finishes import expo, lines, scales  # finishes: scale as a whole, by depth, by name
from clipfuse.fusion.fisher import fisher_merging  # weights from per-example gradients
from clipfuse.fusion.fw import fw_merging  # step by step towards the expert that the gradient points to
from clipfuse.fusion.interpolation import linear_interpolation, multi_slerp, slerp  # lines and arcs between models
from clipfuse.fusion.isotropic import iso_c, iso_cts  # flat spectra
from clipfuse.fusion.knots import knots  # merge in a basis that the experts share
from clipfuse.fusion.magmax import magmax  # entry of largest magnitude
from clipfuse.fusion.metagpt import metagpt  # weights from lengths
from clipfuse.fusion.model_stock import model_stock  # ratio from angles
from clipfuse.fusion.opcm import opcm  # one at a time: orthogonal to what is merged so far
from clipfuse.fusion.pcb import pcb_merging  # entries compete
from clipfuse.fusion.prob_surgery import prob_surgery  # after: as surgery, learned as a distribution
from clipfuse.fusion.pruning import breadcrumbs, magnitude_prune  # edits: keep entries by magnitude
from clipfuse.fusion.quantise import quantise  # edit: few bits
from clipfuse.fusion.regmean import regmean, regmean_plusplus  # linear layers in closed form from inputs
from clipfuse.fusion.surgery import surgery  # after: modules that correct features, one a task
from clipfuse.fusion.svc import svc  # finish: calibrate singular values
from clipfuse.fusion.ties import ties_merging  # trim, elect, merge
from clipfuse.fusion.trim_elect import ties  # edit: trim and elect, for any rule to merge
from clipfuse.fusion.truncate import truncate  # edit: lower rank
from clipfuse.fusion.trust_region import trust_region  # task arithmetic where no other task is hurt
from clipfuse.fusion.tsv import tsv_merging  # task singular vectors
from clipfuse.fusion.wudi import wudi  # least interference, by Adam or in closed form

__all__ = [
    "ada_svd",
    "adamerging",
    "adarank",
    "breadcrumbs",
    "cart",
    "concrete",
    "consensus",
    "continual_average",
    "continual_task_arithmetic",
    "continual_ties",
    "dare",
    "della",
    "doge_ta",
    "dop",
    "expo",
    "factors",
    "fisher_merging",
    "fw_merging",
    "iso_c",
    "iso_cts",
    "knots",
    "linear_interpolation",
    "lines",
    "magmax",
    "magnitude_prune",
    "metagpt",
    "model_stock",
    "multi_slerp",
    "opcm",
    "pcb_merging",
    "prob_surgery",
    "quantise",
    "regmean",
    "regmean_plusplus",
    "scales",
    "simple_average",
    "slerp",
    "surgery",
    "svc",
    "task_arithmetic",
    "ties",
    "ties_merging",
    "truncate",
    "trust_region",
    "tsv_merging",
    "weighted_average",
    "wudi",
]
