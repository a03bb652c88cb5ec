/** Figures over seeds. */

export interface Statistic {
  mean: number;
  /** Of the sample, over n - 1; null with fewer than two seeds. */
  sd: number | null;
}

/** @param values at least one */
export function statisticOf(values: number[]): Statistic {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  if (values.length < 2) return { mean, sd: null };
  const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  return { mean, sd: Math.sqrt(squares / (values.length - 1)) };
}
