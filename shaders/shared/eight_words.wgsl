// Eight values as four words of two f16.
fn eight_of(low: vec4<f32>, high: vec4<f32>) -> Eight {
    return Eight(pack2x16float(low.xy), pack2x16float(low.zw), pack2x16float(high.xy), pack2x16float(high.zw));
}
