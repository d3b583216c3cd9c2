"""`review`: the page where people decide what the heads doubt; with `lite` it imports nothing of torch."""

from product_classificator.cli import console
from product_classificator.cli.options import Review
from product_classificator.cli.serve import need_extra
from product_classificator.cli.tables import open_labelled


def review(options: Review) -> None:
    """Serve the page until it is interrupted."""
    need_extra("the review page")
    import uvicorn  # these need the extra

    from product_classificator.review import app, loop, review

    run, settings = review.newest_run(options.run), options.settings
    catalog = open_labelled(run, options.table, options.products)
    command = loop.train_options(run, options.table, options.products)
    with console.log.status("opening the products, which takes longer the first time, and after changes"):
        opened = review.Review(run, catalog, review.folder_of(options.run), settings, command)
    console.log.print(f"run {run.folder}, {len(opened.products)} products; decisions are kept in {opened.history.path}")
    console.out.print(f"http://{settings.host}:{settings.port}/", soft_wrap=True)
    if opened.access.token:
        console.out.print(f"token: {opened.access.token}", soft_wrap=True)
    console.out.file.flush()  # also where it is no terminal
    uvicorn.run(app.create_app(opened), host=settings.host, port=settings.port, log_config=None, ws="none")
