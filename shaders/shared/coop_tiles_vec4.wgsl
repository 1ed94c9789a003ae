// The tiles of attention_coop in workgroup memory, in vectors of four: what Vulkan can load matrices from, and reads and
// writes of which are single instructions.
const UNIT: u32 = 4u;

var<workgroup> s_k: array<vec4<f16>, BC * KV_PITCH / 4u>; // [BC, KV_PITCH]
var<workgroup> s_v: array<vec4<f16>, BC * KV_PITCH / 4u>; // [BC, KV_PITCH]
var<workgroup> s_s: array<vec4<f32>, ROWS * S_PITCH / 4u>; // [ROWS, S_PITCH]
var<workgroup> s_p: array<vec4<f16>, ROWS * P_PITCH / 4u>; // [ROWS, P_PITCH]

fn put_k(place: u32, value: vec4<f16>) {
    s_k[place / 4u] = value;
}

fn put_v(place: u32, value: vec4<f16>) {
    s_v[place / 4u] = value;
}

fn put_p(place: u32, value: vec4<f16>) {
    s_p[place / 4u] = value;
}

fn put_s(place: u32, value: vec4<f32>) {
    s_s[place / 4u] = value;
}

fn get_s(place: u32) -> vec4<f32> {
    return s_s[place / 4u];
}
