"""Low precision: OCTAV's clipping, VS-Quant's per-vector integer scales, gradient estimators, the autocast context."""

from dgcomp.quant.audit import Audit, EscapedMatmulError, audit
from dgcomp.quant.autocast import autocast, current_recipe, disabled
from dgcomp.quant.cache import invalidate
from dgcomp.quant.calibrate import calibrate, convert
from dgcomp.quant.correct import correct_statistics
from dgcomp.quant.estimators import fake_quantize
from dgcomp.quant.export import export_onnx
from dgcomp.quant.flag import context_from_flag
from dgcomp.quant.histogram import BitHistogram
from dgcomp.quant.integer import integer_matmul
from dgcomp.quant.learned import learn_scales
from dgcomp.quant.octav import code_range, octav_scale
from dgcomp.quant.recipe import Recipe, parse_notation
from dgcomp.quant.vector import QuantizedVectors, load_vectors, per_vector, save_vectors

__all__ = [
    "Audit",
    "BitHistogram",
    "EscapedMatmulError",
    "QuantizedVectors",
    "Recipe",
    "audit",
    "autocast",
    "calibrate",
    "code_range",
    "context_from_flag",
    "convert",
    "correct_statistics",
    "current_recipe",
    "disabled",
    "export_onnx",
    "fake_quantize",
    "integer_matmul",
    "invalidate",
    "learn_scales",
    "load_vectors",
    "octav_scale",
    "parse_notation",
    "per_vector",
    "save_vectors",
]
