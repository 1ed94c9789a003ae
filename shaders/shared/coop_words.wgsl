// Operands of f16 made of the words that a lane holds of them, where a device lays them out as coop_layout.wgsl expects.
//
// These bodies never run: `elements.rs` replaces them in the SPIR-V, by name.

// A left operand: of rows l / 4 and l / 4 + 8 the pairs of columns from 2 (l % 4) and from 2 (l % 4) + 8.
fn left_of(words: vec4<u32>) -> FragmentA {
    return FragmentA();
}

// A right operand: of columns l / 4 and l / 4 + 8 the pairs of rows from 2 (l % 4) and from 2 (l % 4) + 8.
fn right_of(words: vec4<u32>) -> FragmentB {
    return FragmentB();
}
