//! Writes small GGUF files for tests, honest ones and, with the raw parts, broken ones.

#![allow(dead_code, reason = "each test file uses its own part")]

/// Metadata and tensors of a GGUF version 3 file in the making.
#[derive(Default)]
pub struct GgufWriter {
    values: Vec<u8>,
    n_values: u64,
    tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

/// A string as GGUF stores it.
pub fn text(s: &str) -> Vec<u8> {
    [&(s.len() as u64).to_le_bytes(), s.as_bytes()].concat()
}

impl GgufWriter {
    /// A metadata value from its type number and bytes.
    pub fn raw(mut self, key: &str, kind: u32, bytes: &[u8]) -> Self {
        self.values.extend([&text(key), &kind.to_le_bytes()[..], bytes].concat());
        self.n_values += 1;
        self
    }

    pub fn u32(self, key: &str, value: u32) -> Self {
        self.raw(key, 4, &value.to_le_bytes())
    }

    pub fn f32(self, key: &str, value: f32) -> Self {
        self.raw(key, 6, &value.to_le_bytes())
    }

    pub fn bool(self, key: &str, value: bool) -> Self {
        self.raw(key, 7, &[value.into()])
    }

    pub fn str(self, key: &str, value: &str) -> Self {
        self.raw(key, 8, &text(value))
    }

    /// An array from its element type number and the elements' bytes.
    pub fn array(self, key: &str, of: u32, elements: &[Vec<u8>]) -> Self {
        let bytes = [&of.to_le_bytes()[..], &(elements.len() as u64).to_le_bytes(), &elements.concat()].concat();
        self.raw(key, 9, &bytes)
    }

    pub fn strings<S: AsRef<str>>(self, key: &str, values: &[S]) -> Self {
        self.array(key, 8, &values.iter().map(|s| text(s.as_ref())).collect::<Vec<_>>())
    }

    pub fn i32s(self, key: &str, values: &[i32]) -> Self {
        self.array(key, 5, &values.iter().map(|x| x.to_le_bytes().to_vec()).collect::<Vec<_>>())
    }

    pub fn f32s(self, key: &str, values: &[f32]) -> Self {
        self.array(key, 6, &values.iter().map(|x| x.to_le_bytes().to_vec()).collect::<Vec<_>>())
    }

    /// A tensor of row-major `shape` (outermost first), ggml's type number and its bytes.
    pub fn tensor(mut self, name: &str, shape: &[u64], kind: u32, bytes: Vec<u8>) -> Self {
        self.tensors.push((name.into(), shape.iter().rev().copied().collect(), kind, bytes));
        self
    }

    /// The file, with tensors aligned to 32 bytes.
    pub fn finish(self) -> Vec<u8> {
        let counts = [self.tensors.len() as u64, self.n_values];
        let mut file = [b"GGUF", &3u32.to_le_bytes()[..], &counts[0].to_le_bytes(), &counts[1].to_le_bytes()].concat();
        file.extend(&self.values);
        let mut data = Vec::new();
        for (name, dims, kind, bytes) in &self.tensors {
            file.extend(text(name));
            file.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|d| file.extend(d.to_le_bytes()));
            file.extend(kind.to_le_bytes());
            file.extend((data.len() as u64).to_le_bytes());
            data.extend(bytes);
            data.resize(data.len().next_multiple_of(32), 0);
        }
        file.resize(file.len().next_multiple_of(32), 0);
        [file, data].concat()
    }
}
