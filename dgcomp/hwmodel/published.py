"""Published measurements that the models are held against: EIE's Tables III to V and Figure 10.

Source of all of it: Han et al., "EIE: Efficient Inference Engine on Compressed Deep Neural Network", ISCA 2016.
"""

from dataclasses import dataclass

__all__ = ["EIE_LAYERS", "EIE_PLATFORMS", "EIE_PRECISIONS", "EIELayer", "Platform"]


@dataclass(frozen=True, slots=True)
class EIELayer:
    """One benchmark layer of Table III with its times of Table IV; microseconds at batch 1."""

    inputs: int
    outputs: int
    weight_density: float
    activation_density: float
    theoretical_us: float
    """EIE's entries, padding included, divided by PEs and clock."""
    actual_us: float
    cpu_us: tuple[float, float]
    """Core i7-5930K, MKL: dense, sparse."""
    gpu_us: tuple[float, float]
    """Titan X, cuBLAS and cuSPARSE: dense, sparse."""
    mobile_gpu_us: tuple[float, float]
    """Tegra K1: dense, sparse."""


EIE_LAYERS = {
    "Alex-6": EIELayer(9216, 4096, 0.09, 0.351, 28.1, 30.3, (7516.2, 3066.5), (541.5, 134.8), (12437.2, 2879.3)),
    "Alex-7": EIELayer(4096, 4096, 0.09, 0.353, 11.7, 12.2, (6187.1, 1282.1), (243.0, 65.8), (5765.0, 1256.5)),
    "Alex-8": EIELayer(4096, 1000, 0.25, 0.375, 8.9, 9.9, (1134.9, 890.5), (80.5, 54.6), (2252.1, 837.0)),
    "VGG-6": EIELayer(25088, 4096, 0.04, 0.183, 28.1, 34.4, (35022.8, 3774.3), (1467.8, 167.0), (35427.0, 4377.2)),
    "VGG-7": EIELayer(4096, 4096, 0.04, 0.375, 7.9, 8.7, (5372.8, 545.1), (243.0, 39.8), (5544.3, 626.3)),
    "VGG-8": EIELayer(4096, 1000, 0.23, 0.411, 7.3, 8.4, (774.2, 777.3), (80.5, 48.0), (2243.1, 745.1)),
    "NT-We": EIELayer(4096, 600, 0.10, 1.0, 5.2, 8.0, (605.0, 261.2), (65.0, 17.7), (1316.0, 240.6)),
    "NT-Wd": EIELayer(600, 8791, 0.11, 1.0, 13.0, 13.9, (1361.4, 437.4), (90.1, 41.1), (2565.5, 570.6)),
    "NT-LSTM": EIELayer(1201, 2400, 0.10, 1.0, 6.5, 7.5, (470.5, 260.0), (51.9, 18.5), (956.9, 315.0)),
}


@dataclass(frozen=True, slots=True)
class Platform:
    """One column of Table V: area (None: not given), power, and matrix-vector products of Alex-7 a second."""

    area_mm2: float | None
    watts: float
    frames_per_s: float


EIE_PLATFORMS = {
    "Core i7-5930K": Platform(356, 73, 162),
    "Titan X": Platform(601, 159, 4_115),
    "Tegra K1": Platform(None, 5.1, 173),
    "A-Eye FPGA": Platform(None, 9.63, 33),
    "DaDianNao": Platform(67.7, 15.97, 147_938),
    "TrueNorth": Platform(430, 0.18, 1_989),
    "EIE 64 PE, 45 nm": Platform(40.8, 0.59, 81_967),
    "EIE 256 PE, 28 nm": Platform(63.8, 2.36, 426_230),
}

# Figure 10: top-5 accuracy of AlexNet in percent by the arithmetic's precision.
EIE_PRECISIONS = {"fp32": 80.3, "int16": 79.8, "int8": 53.0}
