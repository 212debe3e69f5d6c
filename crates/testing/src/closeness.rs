//! Are two arrays equal up to rounding?

use burn::tensor::{Element, Tensor, TensorData};

/// Numbers with a shape, from a tensor, a golden or a slice (whose shape is its length).
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

impl<const D: usize> From<Tensor<D>> for Array {
    fn from(tensor: Tensor<D>) -> Self {
        tensor.into_data().into()
    }
}

impl<const D: usize> From<&Tensor<D>> for Array {
    fn from(tensor: &Tensor<D>) -> Self {
        tensor.to_data().into()
    }
}

impl From<TensorData> for Array {
    fn from(data: TensorData) -> Self {
        let shape = data.shape().to_vec();
        Self { shape, values: data.iter::<f32>().collect() }
    }
}

impl<E: Element> From<&[E]> for Array {
    fn from(values: &[E]) -> Self {
        Self { shape: vec![values.len()], values: values.iter().map(|value| value.elem()).collect() }
    }
}

impl<E: Element> From<&Vec<E>> for Array {
    fn from(values: &Vec<E>) -> Self {
        values.as_slice().into()
    }
}

impl<E: Element> From<Vec<E>> for Array {
    fn from(values: Vec<E>) -> Self {
        values.as_slice().into()
    }
}

impl<E: Element, const N: usize> From<[E; N]> for Array {
    fn from(values: [E; N]) -> Self {
        values.as_slice().into()
    }
}

/// Panics unless both arrays have the same shape and every element satisfies |actual - expected| <= tolerance * max(|expected|, rms of all expected).
///
/// The root mean square stands in where an expected element is near zero by cancellation: there f32 cannot do better than the neighbours' rounding.
/// NaN is never close to anything, not even to NaN. The message names the worst element.
#[track_caller]
pub fn check_close(name: &str, actual: impl Into<Array>, expected: impl Into<Array>, tolerance: f32) {
    if let Err(message) = compare(&actual.into(), &expected.into(), tolerance) {
        panic!("{name}: {message}");
    }
}

fn compare(actual: &Array, expected: &Array, tolerance: f32) -> Result<(), String> {
    if actual.shape != expected.shape {
        return Err(format!("expected shape {:?}, found {:?}", expected.shape, actual.shape));
    }
    let square: f64 = expected.values.iter().map(|&value| f64::from(value).powi(2)).sum();
    let rms = (square / expected.values.len().max(1) as f64).sqrt();
    let error = |&(actual, expected): &(f32, f32)| {
        if actual == expected && actual.is_finite() {
            return 0.0;
        }
        let error = f64::from(actual - expected).abs() / f64::from(expected.abs()).max(rms).max(1e-6);
        if error.is_finite() { error } else { f64::INFINITY }
    };
    let pairs = actual.values.iter().copied().zip(expected.values.iter().copied());
    let Some((index, pair)) = pairs.clone().enumerate().max_by(|left, right| error(&left.1).total_cmp(&error(&right.1))) else {
        return Ok(());
    };
    if error(&pair) <= f64::from(tolerance) {
        return Ok(());
    }
    let wrong = pairs.filter(|pair| error(pair) > f64::from(tolerance)).count();
    Err(format!(
        "{wrong} of {} elements differ by more than {tolerance:e} relative; worst at {:?}: expected {}, found {} (error {:.2e}, rms of expected {rms:.3e})",
        expected.values.len(),
        position(index, &expected.shape),
        pair.1,
        pair.0,
        error(&pair)
    ))
}

/// Coordinates of a flat index.
fn position(mut index: usize, shape: &[usize]) -> Vec<usize> {
    let mut coordinates: Vec<usize> = shape
        .iter()
        .rev()
        .map(|&size| {
            let coordinate = index % size;
            index /= size;
            coordinate
        })
        .collect();
    coordinates.reverse();
    coordinates
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_close_and_errors_are_not() {
        let compare = |actual: [f32; 3], expected: [f32; 3]| compare(&actual.into(), &expected.into(), 1e-4);
        assert!(compare([1.0, 2.0, 3.0], [1.00001, 2.0, 3.0]).is_ok());
        assert!(compare([1.0, 2.0, 1e-5], [1.0, 2.0, 0.0]).is_ok(), "cancellation to zero is judged by the rms");
        assert!(compare([1.0, 2.0, 3.0], [1.0, 2.0, 3.1]).unwrap_err().contains("worst at [2]"));
        assert!(compare([f32::NAN, 2.0, 3.0], [1.0, 2.0, 3.0]).unwrap_err().contains("worst at [0]"));
        assert!(compare([1.0, 2.0, 3.0], [1.0, f32::NAN, 3.0]).is_err());
        assert!(compare([1.0, f32::NAN, 3.0], [1.0, f32::NAN, 3.0]).is_err());
        assert!(compare([1.0, f32::INFINITY, 3.0], [1.0, f32::INFINITY, 3.0]).is_err());
        assert!(compare([0.0, 0.0, 1e-3], [0.0; 3]).is_err());
    }

    #[test]
    fn shapes_must_agree() {
        let expected = Array { shape: vec![2, 2], values: vec![0.0; 4] };
        assert_eq!(compare(&[0.0f32; 4].into(), &expected, 1.0).unwrap_err(), "expected shape [2, 2], found [4]");
        assert_eq!(position(5, &[2, 3]), [1, 2]);
    }
}
