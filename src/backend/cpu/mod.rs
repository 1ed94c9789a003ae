//! The reference twins: every operation on the CPU, in f32.
