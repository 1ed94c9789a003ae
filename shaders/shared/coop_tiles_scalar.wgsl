// The tiles of attention_coop in workgroup memory, element by element: Metal loads matrices from nothing else.
const UNIT: u32 = 1u;

var<workgroup> s_k: array<f16, BC * KV_PITCH>; // [BC, KV_PITCH]
var<workgroup> s_v: array<f16, BC * KV_PITCH>; // [BC, KV_PITCH]
var<workgroup> s_s: array<f32, ROWS * S_PITCH>; // [ROWS, S_PITCH]
var<workgroup> s_p: array<f16, ROWS * P_PITCH>; // [ROWS, P_PITCH]

fn put_k(place: u32, value: vec4<f16>) {
//@for j 0 4
    s_k[place + ${j}u] = value[${j}];
//@end
}

fn put_v(place: u32, value: vec4<f16>) {
//@for j 0 4
    s_v[place + ${j}u] = value[${j}];
//@end
}

fn put_p(place: u32, value: vec4<f16>) {
//@for j 0 4
    s_p[place + ${j}u] = value[${j}];
//@end
}

fn put_s(place: u32, value: vec4<f32>) {
//@for j 0 4
    s_s[place + ${j}u] = value[${j}];
//@end
}

fn get_s(place: u32) -> vec4<f32> {
    return vec4<f32>(s_s[place], s_s[place + 1u], s_s[place + 2u], s_s[place + 3u]);
}
