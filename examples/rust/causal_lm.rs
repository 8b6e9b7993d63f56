//! A causal language modelling loss and its gradient in float32, written for the golden files of refloss.
//!
//!     rustc --edition 2021 -O -o causal_lm examples/rust/causal_lm.rs
//!     refloss golden write golden --only causal_lm
//!     ./causal_lm golden candidate
//!     refloss compare golden candidate
//!
//! For every causal_lm case of the folder golden whose parameters it knows and whose logits are float32, bfloat16 or
//! float16 it reads the inputs and writes loss and gradient into a file of the same name in the folder candidate. Your
//! own kernel goes where `causal_lm` is. The rest needs no crate, so that one call of the compiler (1.80 or later) is
//! enough; with `safetensors`, `serde_json` and `half` at hand, as in most projects, it is a page shorter.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::str::FromStr;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

// ---------------------------------------------------------------------------------------------------------------------
// The loss. B batch, S sequence, V vocabulary; R = B·S rows of logits.

/// The mean of `−log softmax(logits)[target]` over the rows whose target counts, or their sum over `num_items` if that
/// is given, and its gradient `[R, V]` times `grad_output`.
fn causal_lm(
    logits: &[f32],
    target: &[i64],
    vocabulary: usize,
    ignore_index: i64,
    num_items: Option<f32>,
    grad_output: f32,
) -> (f32, Vec<f32>) {
    let counted = target.iter().filter(|&&label| label != ignore_index).count();
    let normaliser = num_items.unwrap_or(counted as f32);
    let mut loss = 0.0;
    let mut dlogits = vec![0.0; logits.len()]; // an ignored row's gradient is 0, whatever it holds
    let rows = logits.chunks_exact(vocabulary).zip(dlogits.chunks_exact_mut(vocabulary));
    for ((x, dx), &label) in rows.zip(target) {
        if label == ignore_index {
            continue;
        }
        let maximum = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut sum = 0.0;
        for (dx, x) in dx.iter_mut().zip(x) {
            *dx = (x - maximum).exp();
            sum += *dx;
        }
        loss += sum.ln() - (x[label as usize] - maximum);
        for (class, dx) in dx.iter_mut().enumerate() {
            let one_hot = if class as i64 == label { 1.0 } else { 0.0 };
            *dx = (*dx / sum - one_hot) * (grad_output / normaliser);
        }
    }
    (loss / normaliser, dlogits) // 0/0 = NaN where no row counts
}

/// The target of a token is the label of the next one; the last of a sequence has none.
fn next_labels(labels: &[i64], length: usize, ignore_index: i64) -> Vec<i64> {
    let next = |sequence: &[i64]| [&sequence[1..], &[ignore_index]].concat();
    labels.chunks_exact(length).flat_map(next).collect()
}

// ---------------------------------------------------------------------------------------------------------------------
// As much JSON as a manifest and a header hold.

enum Json {
    Word(String), // a string, or a number, true, false and null as they are spelt
    List(Vec<Json>),
    Map(BTreeMap<String, Json>),
}

impl Json {
    fn word(&self) -> Result<&str> {
        match self {
            Json::Word(word) => Ok(word),
            _ => Err("a list or a mapping where the JSON should have a word".into()),
        }
    }

    fn number<T: FromStr>(&self) -> Result<T> {
        let word = self.word()?;
        word.parse().map_err(|_| format!("{word}: no such number").into())
    }

    fn list(&self) -> Result<&[Json]> {
        match self {
            Json::List(items) => Ok(items),
            _ => Err("no list where the JSON should have one".into()),
        }
    }

    fn map(&self) -> Result<&BTreeMap<String, Json>> {
        match self {
            Json::Map(members) => Ok(members),
            _ => Err("no mapping where the JSON should have one".into()),
        }
    }

    fn get(&self, key: &str) -> Result<&Json> {
        self.map()?.get(key).ok_or_else(|| format!("no \"{key}\" in the JSON").into())
    }
}

struct JsonReader<'a> {
    rest: &'a str,
}

impl JsonReader<'_> {
    fn take(&mut self, wanted: char) -> bool {
        let rest = self.rest.trim_start();
        let found = rest.strip_prefix(wanted);
        self.rest = found.unwrap_or(rest);
        found.is_some()
    }

    fn expect(&mut self, wanted: char) -> Result<()> {
        if self.take(wanted) {
            Ok(())
        } else {
            Err(format!("JSON without the {wanted} it should have").into())
        }
    }

    fn string(&mut self) -> Result<String> {
        self.expect('"')?;
        let mut text = String::new();
        let mut characters = self.rest.chars();
        loop {
            match characters.next().ok_or("JSON ends in a string")? {
                '"' => break,
                // Enough for \" and \\ ; names of cases and tensors have no others.
                '\\' => text.extend(characters.next()),
                character => text.push(character),
            }
        }
        self.rest = characters.as_str();
        Ok(text)
    }

    fn value(&mut self) -> Result<Json> {
        if self.take('{') {
            let mut members = BTreeMap::new();
            while !self.take('}') {
                let key = self.string()?;
                self.expect(':')?;
                members.insert(key, self.value()?);
                self.take(',');
            }
            return Ok(Json::Map(members));
        }
        if self.take('[') {
            let mut items = Vec::new();
            while !self.take(']') {
                items.push(self.value()?);
                self.take(',');
            }
            return Ok(Json::List(items));
        }
        if self.rest.starts_with('"') {
            return Ok(Json::Word(self.string()?));
        }
        let end = self.rest.find([',', ']', '}', ' ', '\n']).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        if word.is_empty() {
            return Err("no value where the JSON should have one".into());
        }
        self.rest = rest;
        Ok(Json::Word(word.to_owned()))
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Files. A .safetensors file is eight bytes for the length of a JSON header, the header, then the values of all tensors
// one after the other, little-endian.

struct Tensor {
    dtype: String,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}
type Tensors = BTreeMap<String, Tensor>;

fn read_file(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|error| format!("{}: cannot be read: {error}", path.display()).into())
}

fn read_json(bytes: &[u8]) -> Result<Json> {
    JsonReader { rest: std::str::from_utf8(bytes)? }.value()
}

fn read_safetensors(path: &Path) -> Result<Tensors> {
    let file = read_file(path)?;
    let (length, rest) = file.split_first_chunk::<8>().ok_or("a file that is too short")?;
    let (header, data) = rest.split_at_checked(u64::from_le_bytes(*length) as usize).ok_or("a file that is cut off")?;
    let mut tensors = Tensors::new();
    for (name, entry) in read_json(header)?.map()? {
        if name == "__metadata__" {
            continue;
        }
        let sizes = |key: &str| entry.get(key)?.list()?.iter().map(Json::number).collect::<Result<Vec<usize>>>();
        let [begin, end] = sizes("data_offsets")?[..] else { return Err("no pair of data_offsets".into()) };
        let bytes = data.get(begin..end).ok_or("a file that is cut off")?.to_vec();
        tensors.insert(
            name.clone(),
            Tensor { dtype: entry.get("dtype")?.word()?.to_owned(), shape: sizes("shape")?, bytes },
        );
    }
    Ok(tensors)
}

fn write_safetensors(path: &Path, tensors: &[(&str, Tensor)]) -> Result<()> {
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    for (name, Tensor { dtype, shape, bytes }) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        entries.push(format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":{offsets:?}}}"#));
        data.extend(bytes);
    }
    let mut header = format!("{{{}}}", entries.join(","));
    header += &" ".repeat(header.len().next_multiple_of(8) - header.len()); // the values begin at a multiple of eight
    let length = (header.len() as u64).to_le_bytes();
    fs::write(path, [&length, header.as_bytes(), &data].concat())?;
    Ok(())
}

// ---------------------------------------------------------------------------------------------------------------------
// Numbers of several types.

/// The elements of a tensor, each made of its N bytes.
fn elements<const N: usize, T>(tensor: &Tensor, of: impl Fn([u8; N]) -> T) -> Vec<T> {
    tensor.bytes.chunks_exact(N).map(|bytes| of(bytes.try_into().unwrap())).collect()
}

fn integers(tensor: &Tensor) -> Result<Vec<i64>> {
    match tensor.dtype.as_str() {
        "I64" => Ok(elements(tensor, i64::from_le_bytes)),
        "I32" => Ok(elements(tensor, |bytes| i32::from_le_bytes(bytes).into())),
        other => Err(format!("labels of type {other}").into()),
    }
}

/// A float tensor in float32, if that holds all its values.
fn floats(tensor: &Tensor) -> Option<Vec<f32>> {
    match tensor.dtype.as_str() {
        "F32" => Some(elements(tensor, f32::from_le_bytes)),
        "F16" => Some(elements(tensor, |bytes| from_float16(u16::from_le_bytes(bytes)))),
        "BF16" => Some(elements(tensor, |bytes| from_bfloat16(u16::from_le_bytes(bytes)))),
        _ => None,
    }
}

/// Numbers as a tensor of one of these types.
fn rounded(dtype: &str, shape: &[usize], values: &[f32]) -> Tensor {
    let bytes = match dtype {
        "F16" => values.iter().flat_map(|&value| to_float16(value).to_le_bytes()).collect(),
        "BF16" => values.iter().flat_map(|&value| to_bfloat16(value).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    };
    Tensor { dtype: dtype.to_owned(), shape: shape.to_vec(), bytes }
}

fn from_bfloat16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// To the nearest one; of two that are equally near, the even one.
fn to_bfloat16(value: f32) -> u16 {
    if value.is_nan() {
        return 0x7fc0;
    }
    let bits = value.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

fn from_float16(bits: u16) -> f32 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023));
    let size = match exponent {
        0 => fraction * 2f32.powi(-24),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1024.0 + fraction) * 2f32.powi(exponent - 25),
    };
    if bits >> 15 == 1 {
        -size
    } else {
        size
    }
}

/// To the nearest one; of two that are equally near, the even one.
fn to_float16(value: f32) -> u16 {
    if value.is_nan() {
        return 0x7e00;
    }
    let (sign, size) = (value.to_bits() >> 16 & 0x8000, value.abs());
    // From the smallest normal exponent down units stay as large as they are.
    let exponent = ((size.to_bits() >> 23) as i32 - 127).max(-14);
    let units = (size * 2f32.powi(10 - exponent)).round_ties_even().min(2048.0);
    // As many units as there are float16 in an octave make the exponent one more.
    let bits = ((exponent + 14) * 1024 + units as i32).min(0x7c00);
    (sign | bits as u32) as u16
}

// ---------------------------------------------------------------------------------------------------------------------

/// Whether the case is one for this program; if so, its file is written.
fn answer(entry: &Json, golden: &Path, candidate: &Path) -> Result<bool> {
    let parameters = entry.get("parameters")?.map()?;
    let known = ["ignore_index", "num_items_in_batch", "vocab_size"]; // the right answer depends on all of them
    if entry.get("function")?.word()? != "causal_lm" || !parameters.keys().all(|name| known.contains(&name.as_str())) {
        return Ok(false);
    }
    let file = entry.get("file")?.word()?;
    let inputs = read_safetensors(&golden.join(file))?;
    let input = |name: &str| inputs.get(name).ok_or_else(|| format!("{file}: no {name}"));
    let tensor = input("input.logits")?;
    let Some(logits) = floats(tensor) else {
        return Ok(false);
    };
    let ignore_index = parameters.get("ignore_index").map_or(Ok(-100), Json::number)?;
    let num_items = parameters.get("num_items_in_batch").map(Json::number).transpose()?;
    let target = match inputs.get("input.shift_labels") {
        Some(labels) => integers(labels)?,
        None => {
            let labels = input("input.labels")?;
            next_labels(&integers(labels)?, *labels.shape.last().ok_or("labels without an axis")?, ignore_index)
        }
    };
    let vocabulary = *tensor.shape.last().ok_or("logits without an axis")?;
    let grad_output = entry.get("grad_output")?.number()?;
    let (loss, dlogits) = causal_lm(&logits, &target, vocabulary, ignore_index, num_items, grad_output);
    let answers =
        [("loss", rounded("F32", &[], &[loss])), ("grad.logits", rounded(&tensor.dtype, &tensor.shape, &dlogits))];
    write_safetensors(&candidate.join(file), &answers)?;
    Ok(true)
}

fn answer_all(golden: &Path, candidate: &Path) -> Result<usize> {
    let manifest = read_json(&read_file(&golden.join("manifest.json"))?)?;
    fs::create_dir_all(candidate)?;
    let mut answered = 0;
    for entry in manifest.get("cases")?.list()? {
        answered += usize::from(answer(entry, golden, candidate)?);
    }
    Ok(answered)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [golden, candidate] = arguments.as_slice() else {
        eprintln!("usage: causal_lm GOLDEN CANDIDATE");
        return ExitCode::from(2);
    };
    match answer_all(golden.as_ref(), candidate.as_ref()) {
        Ok(answered) => println!("{answered} cases written to {candidate}"),
        Err(error) => {
            eprintln!("causal_lm: {error}");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}
