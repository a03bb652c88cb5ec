/** Numbers as people read them. */

/** @param {number | null} number   @param {string} unit   @returns {string} */
export function format(number, unit) {
  if (number === null || !Number.isFinite(number)) return '–';
  switch (unit) {
    case 'ratio':
      return `${Number((100 * number).toFixed(2))} %`;
    case 'seconds':
      return duration(number);
    case 'bytes':
      return binary(number);
    case 'bytesPerSecond':
      return `${binary(number)}/s`;
    case 'perSecond':
      return `${digits(number, 3)}/s`;
    case 'imagesPerSecond':
      return `${digits(number, 3)}`;
    default:
      return digits(number, 4);
  }
}

/** @param {number} number   @param {number} significant */
function digits(number, significant) {
  const size = Math.abs(number);
  if (size >= 10 ** (significant - 1)) return Math.round(number).toLocaleString('en');
  if (size !== 0 && size < 0.001) return number.toExponential(1);
  return String(Number(number.toPrecision(significant)));
}

/** @param {number} seconds */
function duration(seconds) {
  const size = Math.abs(seconds);
  if (size === 0) return '0 s';
  if (size < 0.001) return `${digits(1e6 * seconds, 3)} µs`;
  if (size < 1) return `${digits(1000 * seconds, 3)} ms`;
  if (size < 100) return `${digits(seconds, 3)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 100) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** @param {number} bytes */
function binary(bytes) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  const power = bytes === 0 ? 0 : Math.min(units.length - 1, Math.floor(Math.log2(Math.abs(bytes)) / 10));
  return `${digits(bytes / 1024 ** power, 3)} ${units[power]}`;
}
