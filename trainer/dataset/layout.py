"""The files of a dataset folder beside `report.json`."""

#: Pictures that are kept, those that are not, and small ones of both.
PICTURES, DROPPED, THUMBNAILS = "images", "dropped", "thumbnails"
#: Where the loss of a picture counts, for those that have a mask; named by what is in them.
MASKS = "masks"
#: Contact sheets.
SHEETS = "sheets"
#: What a person changed, and what was found out about each picture, for the next preparation.
EDITS_NAME, DECODED_NAME = "edits.json", "decoded.jsonl"
