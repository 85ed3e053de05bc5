"""Flags of evaluate_lrvsf.py that ask for pictures."""

from dataclasses import dataclass, field


@dataclass
class PictureArguments:
    attention: list[int] = field(
        default_factory=list,
        metadata={"help": "Rows of products.parquet: attention.png shows what their queries look at."},
    )
    attention_categories: list[str] = field(
        default_factory=list, metadata={"help": "Conditions that attention.png shows. Default: all of the model's."}
    )
    sheet: int = field(
        default=0, metadata={"help": "Successes and worst failures that sheet.html shows, of each so many; 0: none."}
    )

    def __post_init__(self) -> None:
        if self.attention_categories and not self.attention:
            raise ValueError(f"attention_categories={self.attention_categories} needs --attention, the rows to draw.")
        if self.sheet < 0:
            raise ValueError(f"sheet={self.sheet} must be at least 0.")
