/** Bytes that an exchange has moved since it began, headers included. */
export interface Traffic {
  sentBytes: number;
  receivedBytes: number;
}
