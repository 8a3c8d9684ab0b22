/*
 * The numbers of PostgreSQL's protocol 3: packet types, startup codes, authentication codes. Every module that parses
 * packets imports them. Source: chapter "Message Formats" of PostgreSQL's manual.
 */

/** Bytes in front of a packet's body: type and length. */
export const NEW_HEADER_LEN = 5;
/** Bytes in front of a startup-phase packet's body: length and code, no type byte. */
export const OLD_HEADER_LEN = 8;

/** Length of a cancel key of protocol 3.0, the shortest: 4 bytes of "process id", 4 bytes of secret. */
export const BACKENDKEY_LEN = 8;
/** Length of the longest cancel key of protocol 3.2: its secret has 4 to 256 bytes. */
export const BACKENDKEY_MAX = 4 + 256;

/** The type byte of a packet. Some letters have different meanings from a client and from a server. */
export const enum PqMsg {
  /* client to server */
  Bind = 0x42, // 'B'
  Close = 0x43, // 'C'
  Describe = 0x44, // 'D'
  Execute = 0x45, // 'E'
  FunctionCall = 0x46, // 'F'
  Flush = 0x48, // 'H'
  Parse = 0x50, // 'P'
  Query = 0x51, // 'Q'
  Sync = 0x53, // 'S'
  Terminate = 0x58, // 'X'
  CopyFail = 0x66, // 'f'
  GSSResponse = 0x70, // 'p'
  PasswordMessage = 0x70, // 'p'
  SASLInitialResponse = 0x70, // 'p'
  SASLResponse = 0x70, // 'p'

  /* server to client */
  ParseComplete = 0x31, // '1'
  BindComplete = 0x32, // '2'
  CloseComplete = 0x33, // '3'
  NotificationResponse = 0x41, // 'A'
  CommandComplete = 0x43, // 'C'
  DataRow = 0x44, // 'D'
  ErrorResponse = 0x45, // 'E'
  CopyInResponse = 0x47, // 'G'
  CopyOutResponse = 0x48, // 'H'
  EmptyQueryResponse = 0x49, // 'I'
  BackendKeyData = 0x4b, // 'K'
  NoticeResponse = 0x4e, // 'N'
  AuthenticationRequest = 0x52, // 'R'
  ParameterStatus = 0x53, // 'S'
  RowDescription = 0x54, // 'T'
  FunctionCallResponse = 0x56, // 'V'
  CopyBothResponse = 0x57, // 'W'
  ReadyForQuery = 0x5a, // 'Z'
  NoData = 0x6e, // 'n'
  PortalSuspended = 0x73, // 's'
  ParameterDescription = 0x74, // 't'
  NegotiateProtocolVersion = 0x76, // 'v'

  /* both directions */
  CopyDone = 0x63, // 'c'
  CopyData = 0x64, // 'd'
}

/** The kind of object that Describe and Close name. */
export const enum PqTarget {
  Statement = 0x53, // 'S'
  Portal = 0x50, // 'P'
}

/** The status byte of ReadyForQuery. */
export const enum TxStatus {
  Idle = 0x49, // 'I'
  InTransaction = 0x54, // 'T'
  Failed = 0x45, // 'E'
}

/** Field letters of ErrorResponse and NoticeResponse that the pooler reads or writes. */
export const enum ErrField {
  Severity = 0x53, // 'S'
  SeverityPlain = 0x56, // 'V'
  SqlState = 0x43, // 'C'
  Message = 0x4d, // 'M'
  Detail = 0x44, // 'D'
  Hint = 0x48, // 'H'
  Routine = 0x52, // 'R'
}

/** The code in an AuthenticationRequest. */
export const enum AuthReq {
  OK = 0,
  KRB4 = 1,
  KRB5 = 2,
  PASSWORD = 3,
  CRYPT = 4,
  MD5 = 5,
  GSS = 7,
  GSS_CONT = 8,
  SSPI = 9,
  SASL = 10,
  SASL_CONT = 11,
  SASL_FIN = 12,
}

/** The code of a startup-phase packet; header parsing reports it as the packet's type. All are >= 256. */
export const enum Pkt {
  STARTUP_V2 = 0x20000,
  /** 3.0, and 3.1, which is treated like it */
  STARTUP_V3 = 0x30000,
  STARTUP_V32 = 0x30002,
  /** stands for every 3.x with x > 2 */
  STARTUP_V3_LATER = 0x30003,
  STARTUP_V4 = 0x40000,
  CANCEL = 80877102,
  SSLREQ = 80877103,
  GSSENCREQ = 80877104,
}

/** Type OIDs of the columns that the pooler itself sends. */
export const enum TypeOid {
  BYTEA = 17,
  INT8 = 20,
  INT4 = 23,
  TEXT = 25,
  NUMERIC = 1700,
}
