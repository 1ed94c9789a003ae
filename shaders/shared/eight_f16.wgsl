// Eight values as two vectors of f16.
fn eight_of(low: vec4<f32>, high: vec4<f32>) -> Eight {
    return Eight(vec4<f16>(low), vec4<f16>(high));
}
