// Kernels written for vectors, with vectors of four elements: rows are then multiples of four long and aligned.
alias Wide = vec4<f32>;
alias Bits = vec4<u32>;
const LANES: u32 = 4u;

fn square(x: Wide) -> f32 {
    return dot(x, x);
}
