// The eight elements of a 16 x 16 fragment that a lane of 32 holds, where a device lays fragments out as this does: lane l
// has rows l / 4 (low) and l / 4 + 8 (high), and of each the columns c = 2 (l % 4), c + 1, c + 8 and c + 9, of an accumulator
// and of a left operand alike. coop_layout.wgsl finds out whether a device does; an H100 does.
//
// These bodies never run: `elements.rs` replaces them in the SPIR-V, by name.
struct Elements {
    low: vec4<f32>,
    high: vec4<f32>,
}

// What this lane holds of an accumulator.
fn elements_of(x: FragmentC) -> Elements {
    return Elements();
}

// An accumulator of such elements.
fn accumulator_of(x: Elements) -> FragmentC {
    return FragmentC();
}

// A left operand of such elements, rounded to f16.
fn operand_of(x: Elements) -> FragmentA {
    return FragmentA();
}
