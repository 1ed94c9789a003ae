// Element by element operations on a subgroup's fragments, which WGSL has no words for. These bodies never run:
// `elements.rs` replaces them in the SPIR-V, by name.
alias FragmentH = coop_mat${CM}x${CM}<f16, C>;

// 2^x of each element.
fn fragment_exp2(x: FragmentC) -> FragmentC {
    return x;
}

// The largest of the elements that this lane holds.
fn fragment_max(x: FragmentC) -> f32 {
    return 0.0;
}

// Each element rounded to f16.
fn fragment_f16(x: FragmentC) -> FragmentH {
    return FragmentH();
}
