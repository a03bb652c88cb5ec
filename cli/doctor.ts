/** `braid doctor` is plain JavaScript beside the set-up, since it must run where set-up, and so TypeScript, does not. */
export { doctor } from '../setup/doctor.mjs';
