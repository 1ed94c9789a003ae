// Four weights of f16 on their way to workgroup memory as two words, on a device without that type.
alias RawW = vec2<u32>;

fn raw_w4(i: u32, valid: u32) -> RawW {
    return w[p.w_at + i / 4u];
}

fn staged_w(raw: RawW) -> Stage {
    return Stage(vec4<f32>(unpack2x16float(raw.x), unpack2x16float(raw.y)));
}
