//! CUDA kernels compiled for the device found.
