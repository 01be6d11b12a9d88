"""Tables of captions, as spreadsheets, data sets, annotation programs and people write them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.trainer.dataset.caption_cases import BOTH, CAT, DOG, CaptionCase, Expected, case, table


def spreadsheets() -> Iterator[CaptionCase]:
    yield table("diffusers", "metadata.csv", f'file_name,text\ncat.png,{CAT}\ndog.png,"{DOG}"\n')
    yield table(
        "German Excel", "Bilder.csv", f"Datei;Beschreibung\r\ncat.png;{CAT}\r\ndog.png;{DOG}\r\n".encode("cp1252")
    )
    yield table("Excel's separator line", "a.csv", f"sep=;\r\nfile;text\r\ncat.png;{CAT}\r\ndog.png;{DOG}\r\n")
    yield table(
        "Excel's Unicode text", "a.txt", f'file\ttext\r\ncat.png\t{CAT}\r\ndog.png\t"{DOG}"\r\n'.encode("utf-16")
    )
    yield table("UTF-8 with a mark", "a.csv", f'\ufefffile_name,text\r\ncat.png,{CAT}\r\ndog.png,"{DOG}"\r\n')
    yield table("pandas' index", "a.csv", f',file_name,text\n0,cat.png,{CAT}\n1,dog.png,"{DOG}"\n')
    yield table("caption first", "a.csv", f'text,file_name\n{CAT},cat.png\n"{DOG}",dog.png\n')
    yield table(
        "more columns",
        "a.csv",
        f'width,file_name,split,aesthetic,text\n512,cat.png,train,5.1,{CAT}\n640,dog.png,test,6.2,"{DOG}"\n',
    )
    yield table(
        "two lines in a cell", "a.csv", 'file,text\ncat.png,"a red cat\non a mat"\ndog.png,"a brown dog, running"\n'
    )
    yield table("empty rows and columns", "a.csv", f'file,text,,\n,,,\ncat.png,{CAT},,\n,,,\ndog.png,"{DOG}",,\n,,,\n')
    yield table("spaces after commas", "a.csv", f'file, text\ncat.png, {CAT}\ndog.png, "{DOG}"\n')
    yield table("captions with commas, without quotes", "a.csv", f"file,text\ncat.png,{CAT}\ndog.png,{DOG}\n")
    yield table("no header", "captions.csv", f"cat.png,{CAT}\ndog.png,{DOG}\n")
    yield table("header in Korean", "a.csv", f'파일,설명\ncat.png,{CAT}\ndog.png,"{DOG}"\n')
    yield table("header in Arabic", "a.csv", f'الصورة,الوصف\ncat.png,{CAT}\ndog.png,"{DOG}"\n')
    yield table(
        "chosen column", "a.csv", f'file,short,long\ncat.png,x y z,{CAT}\ndog.png,u v w,"{DOG}"\n', column="long"
    )
    yield table(
        "two columns may be meant",
        "a.csv",
        f'file,caption_en,caption_de\ncat.png,{CAT},eine rote Katze hier\ndog.png,"{DOG}",ein Hund rennt schnell\n',
        captions={"cat.png": (), "dog.png": ()},
        told=["a.csv"],
    )
    yield table(
        "a column that is not there",
        "a.csv",
        f"file,text\ncat.png,{CAT}\n",
        captions={"cat.png": ()},
        column="prompt",
        told=["a.csv"],
    )
    yield table(
        "Kaggle's Flickr8k",
        "captions.txt",
        f"image,caption\ncat.png,{CAT}\ncat.png,A cat lies down .\ndog.png,{DOG}\n",
        captions={"cat.png": (CAT, "A cat lies down ."), "dog.png": DOG},
    )
    yield table(
        "Flickr30k",
        "results.csv",
        f"image_name| comment_number| comment\ncat.png| 0| {CAT}\ncat.png| 1| A cat lies down .\ndog.png| 0| {DOG}\n",
        captions={"cat.png": (CAT, "A cat lies down ."), "dog.png": DOG},
    )
    yield table(
        "Flickr8k's tokens",
        "Flickr8k.token.txt",
        f"cat.png#0\t{CAT}\ncat.png#1\tA cat lies down .\ndog.png#0\t{DOG}\n",
        captions={"cat.png": (CAT, "A cat lies down ."), "dog.png": DOG},
    )
    yield table("a list by tabs under any name", "train.txt", f"cat.png\t{CAT}\ndog.png\t{DOG}\n")
    yield table("a list by pipes under any name", "filelist.txt", f"cat.png|{CAT}\ndog.png|{DOG}\n")
    yield table("a list by colons", "captions.txt", f"cat.png: {CAT}\ndog.png: {DOG}\n")
    yield table("a list by spaces", "list.txt", f"cat.png {CAT}\ndog.png {DOG}\n")
    yield table(
        "a table in Markdown",
        "captions.txt",
        f"| file | caption |\n|---|---|\n| cat.png | {CAT} |\n| dog.png | {DOG} |\n",
    )
    yield table(
        "quotes that are doubled",
        "a.csv",
        'file,text\ncat.png,"a ""red"" cat"\ndog.png,a dog\n',
        captions={"cat.png": 'a "red" cat', "dog.png": "a dog"},
    )
    yield table(
        "an inch is no quote",
        "a.csv",
        'file,text\ncat.png,a 5" cat\ndog.png,a dog\n',
        captions={"cat.png": 'a 5" cat', "dog.png": "a dog"},
    )
    yield table("nan", "a.csv", f"file,text\ncat.png,nan\ndog.png,{DOG}\n", captions={"cat.png": (), "dog.png": DOG})
    yield table(
        "errors of Excel",
        "a.csv",
        f"file,text\ncat.png,#NAME?\ndog.png,#N/A\nowl.png,{CAT}\n",
        captions={"cat.png": (), "dog.png": (), "owl.png": CAT},
    )
    yield table("images by number", "a.csv", f'id,caption\n1,{CAT}\n2,"{DOG}"\n', captions={"1.png": CAT, "2.png": DOG})
    yield table(
        "leading zeros that Excel removed",
        "a.csv",
        f'file,caption\n1,{CAT}\n2,"{DOG}"\n',
        captions={"0001.png": CAT, "0002.png": DOG},
    )
    yield table(
        "addresses as names",
        "a.csv",
        f'URL,TEXT\nhttps://x.org/1/cat.png,{CAT}\nhttps://y.org/u/z/dog.png?w=100,"{DOG}"\n',
    )
    yield table(
        "Airtable's attachments",
        "a.csv",
        f'Image,Caption\ncat.png (https://dl.airtable.com/x/y),{CAT}\ndog.png (https://dl.airtable.com/u/v),"{DOG}"\n',
    )
    yield table(
        "paths of Windows",
        "a.csv",
        f'file,text\nC:\\Users\\me\\set\\cat.png,{CAT}\nC:\\Users\\me\\set\\dog.png,"{DOG}"\n',
    )
    yield table(
        "file addresses",
        "a.csv",
        f'file,text\nfile:///home/me/set/cat.png,{CAT}\nfile:///home/me/set/my%20dog.png,"{DOG}"\n',
        captions={"cat.png": CAT, "my dog.png": DOG},
    )
    yield table(
        "an image that is gone",
        "a.csv",
        f'file,text\ncat.png,{CAT}\nowl.png,an owl\ndog.png,"{DOG}"\n',
        told=["a.csv:3"],
    )
    yield table(
        "a broken line", "a.csv", f'file,text,x\ncat.png,{CAT},1\n,lost,1\ndog.png,"{DOG}",1\n', told=["a.csv:3"]
    )
    yield table("a row twice", "a.csv", f'file,text\ncat.png,{CAT}\ncat.png,{CAT}\ndog.png,"{DOG}"\n')
    yield table(
        "names in class folders",
        "a.csv",
        f'file,text\ncat.png,{CAT}\ndog.png,"{DOG}"\n',
        captions={"cats/cat.png": CAT, "dogs/dog.png": DOG},
    )
    yield table("the nearest of two", "x/a.csv", f"file,text\ncat.png,{CAT}\n", captions={"x/cat.png": CAT})
    yield case("an own text and a table", {"cat.txt": CAT, "a.csv": f"file,text\ncat.png,other\ndog.png,{DOG}\n"}, BOTH)
    yield table(
        "no captions",
        "a.csv",
        "file,width\ncat.png,512\ndog.png,640\n",
        captions={"cat.png": (), "dog.png": ()},
        told=["a.csv"],
    )
    yield table(
        "a tagger's vocabulary",
        "selected_tags.csv",
        "tag_id,name,category,count\n1,1girl,0,100\n2,solo,0,90\n",
        captions={"cat.png": ()},
        told=["selected_tags.csv:2", "selected_tags.csv:3"],
    )
    yield table(
        "VIA's CSV",
        "via.csv",
        "filename,file_size,file_attributes,region_count,region_id\n"
        'cat.png,10,"{""caption"":""a red cat on a mat""}",0,0\n'
        'dog.png,11,"{""caption"":""a brown dog, running""}",0,0\n',
    )
    yield table(
        "Label Studio's CSV",
        "project-1.csv",
        f'annotation_id,annotator,caption,created_at,id,image,lead_time,updated_at\n1,1,{CAT},2024-01-02T03:04:05Z,1,/data/upload/3/1a2b3c4d-cat.png,9.1,2024-01-02T03:04:05Z\n2,1,"{DOG}",2024-01-02T03:04:05Z,2,/data/upload/3/99ab00ff-dog.png,9.1,2024-01-02T03:04:05Z\n',
    )
    yield table("a title above", "a.csv", f'My cats,\nfile,text\ncat.png,{CAT}\ndog.png,"{DOG}"\n')
    yield table("alternative texts of pages", "a.csv", f'src,alt_text\ncat.png,{CAT}\ndog.png,"{DOG}"\n')
    yield table("prompts", "a.csv", f'filename,prompt,negative_prompt\ncat.png,{CAT},ugly\ndog.png,"{DOG}",bad\n')
    yield table("a title too", "a.csv", f'filename,title,description\ncat.png,Cat,{CAT}\ndog.png,Dog,"{DOG}"\n')
    yield table("decimal commas", "a.csv", f"Datei;Breite;Text\ncat.png;1,5;{CAT}\ndog.png;2,5;{DOG}\n")
    yield table("a list in Markdown", "my.md.txt", f"- cat.png: {CAT}\n- dog.png: {DOG}\n")
    yield table("a numbered list", "list.txt", f"1. cat.png: {CAT}\n2. dog.png: {DOG}\n")
    yield table("a list with =", "captions.txt", f"cat.png = {CAT}\ndog.png = {DOG}\n")
    yield table("a list with arrows", "captions.txt", f"cat.png -> {CAT}\ndog.png → {DOG}\n")
    yield table("a list with dashes", "captions.txt", f"cat.png - {CAT}\ndog.png – {DOG}\n")
    yield table("a list with quotes", "list.txt", f'"cat.png" "{CAT}"\n"dog.png" "{DOG}"\n')
    nothing: dict[str, Expected] = {"cat.png": (), "dog.png": ()}
    yield table("a list of names", "list.txt", "cat.png\ndog.png\n", captions=nothing, told=["list.txt"])
    yield table("ImageNet's classes", "val.txt", "cat.png 65\ndog.png 970\n", captions=nothing)
    yield table(
        "CelebA's attributes", "list.txt", "cat.png -1  1 -1\ndog.png  1 -1 -1\n", captions=nothing, told=["list.txt"]
    )
    yield table(
        "landmarks", "list.txt", "cat.png 69 109.5 2e-3\ndog.png 69 110 1\n", captions=nothing, told=["list.txt"]
    )
    yield table("Excel's separator line in quotes", "a.csv", f'"sep=;"\nfile;text\ncat.png;{CAT}\ndog.png;{DOG}\n')
    yield table("single quotes", "a.csv", f"'cat.png','{CAT}'\n'dog.png','{DOG}'\n")
    its = {"cat.png": 'the cat\'s "hat", red', "dog.png": DOG}
    yield table(
        "doubled", "a.csv", f"'file','text'\n'cat.png','the cat''s \"hat\", red'\n'dog.png','{DOG}'\n", captions=its
    )
    yield table("comments above", "a.csv", f'# made by me, 2024\n#\nfile,text\ncat.png,{CAT}\ndog.png,"{DOG}"\n')
    yield table("comments above an unknown header", "a.csv", f'# by me\nBild,Was\ncat.png,{CAT}\ndog.png,"{DOG}"\n')
    via = f'#filename,file_attributes\ncat.png,"{{""caption"":""{CAT}""}}"\ndog.png,"{{""caption"":""{DOG}""}}"\n'
    yield table("a header that looks like a comment", "a.csv", via)
    numbered = {"#1.png": CAT, "#2.png": DOG}
    yield table("names that look like comments", "a.csv", f'#1.png,{CAT}\n#2.png,"{DOG}"\n', captions=numbered)
    yield table("lines in quotes", "a.csv", f'file,text\n"cat.png,{CAT}"\n"dog.png,""{DOG}"""\n')
    chinese = {"cat.png": "红猫，坐着", "dog.png": "棕狗"}
    yield table("Chinese commas", "a.csv", "图片，描述\ncat.png，红猫，坐着\ndog.png，棕狗\n", captions=chinese)
    yield table("Chinese colons", "a.txt", "cat.png：红猫，坐着\ndog.png：棕狗\n", captions=chinese)
    yield table("names above captions", "captions.txt", f"cat.png\n{CAT}\n\n[dog.png]\na brown dog,\nrunning\n")
    yield table("headings above captions", "captions.txt", f"## cat.png\n{CAT}\n\n**dog.png:**\n{DOG}\n")
    yield table(
        "a name above no caption", "captions.txt", "cat.png\n\ndog.png\na\n", captions=nothing, told=["captions.txt:4"]
    )
    yield table("names in bold", "captions.txt", f"- **cat.png**: {CAT}\n- **dog.png:** {DOG}\n")
    yield table("an empty cell behind", "a.csv", f'cat.png,{CAT},\ndog.png,"{DOG}",\n')
    yield table("double arrows", "captions.txt", f"cat.png => {CAT}\ndog.png --> {DOG}\n")
    yield table("numbers of rows", "a.csv", f'1,cat.png,{CAT}\n2,dog.png,"{DOG}"\n')
    yield table("sizes", "a.csv", f'{CAT},512,768,cat.png\n"{DOG}",512,512,dog.png\n')
    drawn = f"+------+\n| file | text |\n+======+\n| cat.png | {CAT} |\n+--+--+\n| dog.png | {DOG} |\n+--+--+\n"
    yield table("a drawn table", "captions.txt", drawn)
    formulas = f'image,text\n"=IMAGE(""https://a.org/cat.png"")",{CAT}\n"=HYPERLINK(""dog.png"",""the dog"")","{DOG}"\n'
    yield table("formulas", "a.csv", formulas)
    yield table("queries", "a.csv", f'file,text\n./cat.png?raw=true,{CAT}\ndog.png?v=2&w=9,"{DOG}"\n')
    unseen = f'file,text\n\u202acat.png\u200b,{CAT}\n\u00a0dog.png,"{DOG}"\n'
    yield table("characters without a glyph around names", "a.csv", unseen)
    pairs = "before,after,edit\ncat.png,dog.png,make it a dog\n"
    yield table("two images in a row", "a.csv", pairs, captions=nothing, told=["a.csv"])
    twice = f'original,stored,text\ncat.png,cat.png,{CAT}\ndog.png,dog.png,"{DOG}"\n'
    yield table("the same image twice in a row", "a.csv", twice)


def markdown() -> Iterator[CaptionCase]:
    rows = f"| `cat.png` | {CAT} |\n| ![](dog.png) | {DOG} |\n"
    yield table(
        "Markdown", "README.md", f"# Cats\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n| image | what |\n|:-|-:|\n{rows}\nEnd"
    )
    yield table("HTML in it", "a.md", rows.replace("![](dog.png)", '<img src="dog.png" width=9>'))
    nothing: dict[str, Expected] = {"cat.png": (), "dog.png": ()}
    yield table("no table", "README.md", "# Cats\n\nSee cat.png: a cat\n", captions=nothing, told=["README.md"])


CASES = [*spreadsheets(), *markdown()]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_row_of_a_table_goes_to_its_image(case: CaptionCase) -> None:
    case.check()
