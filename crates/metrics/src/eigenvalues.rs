//! Eigenvalues of symmetric matrices, in f64: Householder's tridiagonal form (Golub and Van Loan, "Matrix Computations", section 8.3.1) and bisection on
//! Sturm counts (section 8.4.1). Only what the Frechet distance needs, and slow only for thousands of rows.

/// A square matrix in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub struct SquareMatrix {
    pub size: usize,
    pub values: Vec<f64>,
}

impl SquareMatrix {
    pub fn zero(size: usize) -> Self {
        Self { size, values: vec![0.0; size * size] }
    }

    pub fn row(&self, index: usize) -> &[f64] {
        &self.values[index * self.size..(index + 1) * self.size]
    }

    pub fn trace(&self) -> f64 {
        (0..self.size).map(|index| self.values[index * self.size + index]).sum()
    }

    pub fn transposed(&self) -> Self {
        let values = (0..self.values.len()).map(|at| self.values[at % self.size * self.size + at / self.size]).collect();
        Self { size: self.size, values }
    }

    /// `self` times `other`.
    pub fn times(&self, other: &Self) -> Self {
        let mut product = Self::zero(self.size);
        for (left, row) in self.values.chunks_exact(self.size).zip(product.values.chunks_exact_mut(self.size)) {
            for (&factor, right) in left.iter().zip(other.values.chunks_exact(self.size)) {
                row.iter_mut().zip(right).for_each(|(sum, value)| *sum += factor * value);
            }
        }
        product
    }
}

/// L with L L^T = `matrix`, lower triangular; `matrix` symmetric and positive semidefinite. Directions without variance give columns of zeros.
pub fn cholesky(matrix: &SquareMatrix) -> SquareMatrix {
    let size = matrix.size;
    let mut lower = SquareMatrix::zero(size);
    let largest = (0..size).map(|index| matrix.row(index)[index]).fold(0.0, f64::max);
    let negligible = largest * size as f64 * f64::EPSILON;
    for column in 0..size {
        let dot = |lower: &SquareMatrix, row: usize| -> f64 { lower.row(row)[..column].iter().zip(&lower.row(column)[..column]).map(|(a, b)| a * b).sum() };
        let pivot = matrix.row(column)[column] - dot(&lower, column);
        if pivot <= negligible {
            continue;
        }
        let root = pivot.sqrt();
        for row in column..size {
            let value = (matrix.row(row)[column] - dot(&lower, row)) / root;
            lower.values[row * size + column] = value;
        }
    }
    lower
}

/// All eigenvalues of a symmetric matrix, ascending.
pub fn symmetric_eigenvalues(matrix: SquareMatrix) -> Vec<f64> {
    let size = matrix.size;
    let (diagonal, beside) = tridiagonal(matrix);
    if size == 0 {
        return Vec::new();
    }
    // Gershgorin: every eigenvalue lies within the sum of the off-diagonal entries around a diagonal entry.
    let radius = |row: usize| if row > 0 { beside[row - 1].abs() } else { 0.0 } + beside.get(row).map_or(0.0, |value| value.abs());
    let low = (0..size).map(|row| diagonal[row] - radius(row)).fold(f64::INFINITY, f64::min);
    let high = (0..size).map(|row| diagonal[row] + radius(row)).fold(f64::NEG_INFINITY, f64::max);
    let squares: Vec<f64> = beside.iter().map(|value| value * value).collect();
    let scale = low.abs().max(high.abs());
    (0..size).map(|rank| bisect(&diagonal, &squares, rank, low, high, scale)).collect()
}

/// The eigenvalue that has `rank` smaller ones: halves the interval until f64 cannot tell its ends apart at the scale of the matrix.
fn bisect(diagonal: &[f64], squares: &[f64], rank: usize, mut low: f64, mut high: f64, scale: f64) -> f64 {
    while high - low > scale * f64::EPSILON {
        let middle = low + (high - low) / 2.0;
        if middle <= low || middle >= high {
            break;
        }
        if count_below(diagonal, squares, middle, scale) > rank { high = middle } else { low = middle }
    }
    low + (high - low) / 2.0
}

/// How many eigenvalues are below `value`: the negative pivots of T - value I (Sylvester's law of inertia).
fn count_below(diagonal: &[f64], squares: &[f64], value: f64, scale: f64) -> usize {
    let smallest = (scale * f64::EPSILON).powi(2).max(f64::MIN_POSITIVE);
    let mut pivot = 1.0;
    let mut count = 0;
    for (row, &entry) in diagonal.iter().enumerate() {
        let square = if row > 0 { squares[row - 1] } else { 0.0 };
        pivot = entry - value - square / pivot;
        // A pivot of zero would divide the next one by zero; a nudge changes the matrix by less than its rounding.
        if pivot.abs() < smallest {
            pivot = -smallest;
        }
        count += usize::from(pivot < 0.0);
    }
    count
}

/// Diagonal and the entries beside it of a tridiagonal matrix with the same eigenvalues.
fn tridiagonal(mut matrix: SquareMatrix) -> (Vec<f64>, Vec<f64>) {
    let size = matrix.size;
    let mut beside = Vec::with_capacity(size.saturating_sub(1));
    for step in 0..size.saturating_sub(1) {
        let rest = step + 1;
        // The reflection I - 2 v v^T / (v^T v) turns the column below the diagonal into a multiple of the first axis.
        let mut v: Vec<f64> = matrix.row(step)[rest..].to_vec(); // the row equals the column
        let length = v.iter().map(|value| value * value).sum::<f64>().sqrt();
        let reflected = if v[0] > 0.0 { -length } else { length };
        beside.push(reflected);
        v[0] -= reflected;
        let square: f64 = v.iter().map(|value| value * value).sum();
        if square == 0.0 {
            continue;
        }
        let factor = 2.0 / square;
        let p: Vec<f64> = (rest..size).map(|row| factor * matrix.row(row)[rest..].iter().zip(&v).map(|(a, b)| a * b).sum::<f64>()).collect();
        let along = 0.5 * factor * v.iter().zip(&p).map(|(a, b)| a * b).sum::<f64>();
        let w: Vec<f64> = p.iter().zip(&v).map(|(p, v)| p - along * v).collect();
        for (index, row) in matrix.values.chunks_exact_mut(size).skip(rest).enumerate() {
            for (entry, (v_column, w_column)) in row[rest..].iter_mut().zip(v.iter().zip(&w)) {
                *entry -= v[index] * w_column + w[index] * v_column;
            }
        }
    }
    ((0..size).map(|index| matrix.row(index)[index]).collect(), beside)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha12Rng;

    fn check(found: Vec<f64>, expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-12 * expected.abs().max(1.0), "expected {expected}, found {found}");
        }
    }

    fn matrix(size: usize, values: &[f64]) -> SquareMatrix {
        SquareMatrix { size, values: values.to_vec() }
    }

    #[test]
    fn known_matrices_have_known_eigenvalues() {
        check(symmetric_eigenvalues(matrix(0, &[])), &[]);
        check(symmetric_eigenvalues(matrix(1, &[-3.0])), &[-3.0]);
        check(symmetric_eigenvalues(matrix(2, &[2.0, 1.0, 1.0, 2.0])), &[1.0, 3.0]);
        check(symmetric_eigenvalues(matrix(3, &[3.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 3.0])), &[-1.0, 3.0, 3.0]);
        check(symmetric_eigenvalues(SquareMatrix::zero(4)), &[0.0; 4]);
        // The second difference of a path of n points: 2 - 2 cos(k pi / (n + 1)).
        let size = 30;
        let path = SquareMatrix {
            size,
            values: (0..size * size)
                .map(|at| match (at / size).abs_diff(at % size) {
                    0 => 2.0,
                    1 => -1.0,
                    _ => 0.0,
                })
                .collect(),
        };
        let expected: Vec<f64> = (1..=size).map(|k| 2.0 - 2.0 * (k as f64 * std::f64::consts::PI / (size + 1) as f64).cos()).collect();
        check(symmetric_eigenvalues(path), &expected);
    }

    #[test]
    fn eigenvalues_survive_a_rotation_and_the_root_squares_back() {
        let size = 24;
        let mut rng = ChaCha12Rng::seed_from_u64(1);
        let random = SquareMatrix { size, values: (0..size * size).map(|_| rng.random_range(-1.0..1.0)).collect() };
        // Semidefinite of rank 20: four eigenvalues are zero.
        let mut tall = random.clone();
        tall.values.chunks_exact_mut(size).for_each(|row| row[20..].fill(0.0));
        let semidefinite = tall.times(&tall.transposed());
        let root = cholesky(&semidefinite);
        let again = root.times(&root.transposed());
        assert!(again.values.iter().zip(&semidefinite.values).all(|(a, b)| (a - b).abs() < 1e-10));
        // A A^T and A^T A share their eigenvalues.
        let (left, right) = (symmetric_eigenvalues(semidefinite.clone()), symmetric_eigenvalues(tall.transposed().times(&tall)));
        check(left.clone(), &right);
        assert!(left[..4].iter().all(|value| value.abs() < 1e-12) && left[4] > 1e-6);
        assert!((left.iter().sum::<f64>() - semidefinite.trace()).abs() < 1e-10);
    }
}
