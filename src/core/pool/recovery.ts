/** How far the recovery of a server is whose client has left in the middle of its work: see link/recovery.ts. */
export const enum Recovery {
  NONE = 0,
  /** the answers to the client's requests are read and dropped */
  DRAIN,
  /** the transaction is being rolled back */
  ROLLBACK,
}
