// Kernels written for vectors, with vectors of one element.
alias Wide = f32;
alias Bits = u32;
const LANES: u32 = 1u;

fn square(x: Wide) -> f32 {
    return x * x;
}
