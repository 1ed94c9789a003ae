// A kernel's result stored as f16, one element or four (`Wide`), saturating: an activation beyond 65504 would become an
// infinity and then, through the next norm or softmax, a row of NaN. NaN stays NaN, so that bad input is seen; it is
// told by its bits, because compilers take `x != x` for false (Mesa 22.3 does).
fn to_out(x: Wide) -> Out {
    let nan = (bitcast<Bits>(x) & Bits(0x7fffffffu)) > Bits(0x7f800000u);
    return Out(select(clamp(x, Wide(-65504.0), Wide(65504.0)), x, nan));
}
